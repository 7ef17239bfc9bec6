"""Layers onto mounts, and from them: the work is done by `taskd.layers`, in a child each.

Decompression, digests and thousands of files keep neither the event loop nor the interpreter of
the daemon busy, and a layer that goes beyond its limits, or whose client has gone, is one process
to be killed. Its mounts are in a namespace of its own, and go with it.
"""
