"""The snapshotters that there are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from taskd.events import Bus
from taskd.metadata import Database
from taskd.snapshots.drivers import Driver, Native, Overlay
from taskd.snapshots.folders import Folders
from taskd.snapshots.snapshotter import Snapshotter

__all__ = ["TYPE", "load"]

TYPE = "io.containerd.snapshotter.v1"

_INDEX = Path("/sys/module/overlay/parameters/index")

_ALL_USERS = 2**32 - 1


def load(database: Database, bus: Bus, root: Path) -> Mapping[str, Snapshotter]:
    """Those whose folders, containerd's, are below `root`, by name. Blocks; raises OSError."""

    def snapshotter(driver: type[Driver], *options: str) -> Snapshotter:
        folders = Folders(root / f"{TYPE}.{driver.name}")
        return Snapshotter(database, bus, folders, driver(folders.path, options))

    found = (snapshotter(Overlay, *_overlay_options()), snapshotter(Native))
    return {each.name: each for each in found}


def _overlay_options() -> list[str]:
    """What each overlay is mounted with.

    Root of a user namespace may not write the extended attributes that overlays have else. An
    index would refuse upper directories that are used once more.
    Source: containerd's ``overlayutils/check.go``.
    """
    options = ["userxattr"] if _in_user_namespace() else []
    return [*options, "index=off"] if _INDEX.exists() else options


def _in_user_namespace() -> bool:
    ranges = Path("/proc/self/uid_map").read_text().split()
    return ranges != ["0", "0", str(_ALL_USERS)]
