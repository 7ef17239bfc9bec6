"""Registries of images: OCI's distribution API from the client's side, over HTTP.

`hosts` says which hosts answer for a name, `http` asks one of them, `authorization` is what it
wants to see before it answers, and `resolver` is what one transfer asks of them all. aiohttp is
loaded when somebody first asks a registry for something.
"""
