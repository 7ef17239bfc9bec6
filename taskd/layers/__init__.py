"""Layers: file systems' changes as tar archives, unpacked and made in a process of its own.

It is `process.main` (`taskd.diff.child` starts it), may be killed at any time, and
imports nothing of the daemon's.
"""
