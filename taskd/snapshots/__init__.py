"""Snapshots: the layers of root filesystems, each made on its parent, and mounted by its user.

What is known of them is in SQLite, per namespace; their files are in a folder for each, numbered,
below that of the snapshotter. SQLite is the truth: a folder that it does not know is rubbish.
A `Snapshotter` is one way to keep them (``overlayfs``, ``native``), as all namespaces see it.
"""

from taskd.snapshots.loading import TYPE, load
from taskd.snapshots.snapshotter import Snapshotter
from taskd.snapshots.types import Info, Kind, Usage

__all__ = ["TYPE", "Info", "Kind", "Snapshotter", "Usage", "load"]
