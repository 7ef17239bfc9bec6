"""Layers: file systems' changes as tar archives, unpacked and made in a process of its own.

It is run as ``python -m taskd.layers`` (`taskd.diff` starts it), may be killed at any time, and
imports nothing of the daemon's.
"""
