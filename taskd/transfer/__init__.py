"""Images on their way: from and to registries, archives and the image store.

`service` says what goes where, `pull`, `push`, `importing`, `exporting` do it, `store` is the image
store as a place to take from and to put into, `unpacking` makes snapshots of layers, `progress`
tells how far it is, and `streams` are what clients send and get beside their call.
"""
