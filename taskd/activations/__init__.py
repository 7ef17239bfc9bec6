"""Mounts that the daemon makes and keeps for others: what takes more than one call of mount(2).

Each activation is a record in SQLite, and a folder in the state folder with a mount point for each
mount that was made. Source: containerd's ``core/mount/manager`` (2.2 and later).
"""

from taskd.activations.manager import MountManager, asks_for_more
from taskd.activations.types import Activation, Active

__all__ = ["Activation", "Active", "MountManager", "asks_for_more"]
