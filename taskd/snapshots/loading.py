"""The snapshotters that there are on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskd.events import Bus
from taskd.metadata import Database
from taskd.snapshots.drivers import Driver, Native, Overlay
from taskd.snapshots.folders import Folders
from taskd.snapshots.settings import SnapshotsConfig
from taskd.snapshots.snapshotter import Snapshotter

__all__ = ["TYPE", "load"]

TYPE = "io.containerd.snapshotter.v1"

_INDEX = Path("/sys/module/overlay/parameters/index")

_ALL_USERS = 2**32 - 1


def load(
    database: Database, bus: Bus, root: Path, config: SnapshotsConfig | None = None
) -> Mapping[str, Snapshotter]:
    """Those whose folders, containerd's, are below `root`, by name. Blocks; raises OSError."""
    config = config or SnapshotsConfig()

    def snapshotter(
        driver: type[Driver], options: Sequence[str] = (), capabilities: Sequence[str] = ()
    ) -> Snapshotter:
        folders = Folders(root / f"{TYPE}.{driver.name}")
        made = driver(folders.path, options, capabilities)
        return Snapshotter(database, bus, folders, made, sync_remove=config.sync_remove)

    found = (
        snapshotter(Overlay, _overlay_options(config.mount_options), _overlay_capabilities()),
        snapshotter(Native),
    )
    return {each.name: each for each in found}


def _overlay_capabilities() -> list[str]:
    """``rebase``: what is unpacked without its parent can be given one when it is committed.

    That something of the parent's is gone is then told by device files, which root makes.
    """
    return ["rebase"] if os.geteuid() == 0 and not _in_user_namespace() else []


def _overlay_options(given: Sequence[str]) -> list[str]:
    """What each overlay is mounted with: what was `given`, and what else it has to be.

    Root of a user namespace may not write the extended attributes that overlays have else. An
    index would refuse upper directories that are used once more.
    Source: containerd's ``overlayutils/check.go``.
    """
    names = {each.partition("=")[0] for each in given}
    options = [*given]
    if "userxattr" not in names and _in_user_namespace():
        options.append("userxattr")
    if "index" not in names and _INDEX.exists():
        options.append("index=off")
    return options


def _in_user_namespace() -> bool:
    ranges = Path("/proc/self/uid_map").read_text().split()
    return ranges != ["0", "0", str(_ALL_USERS)]
