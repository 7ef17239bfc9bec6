"""A place for snapshots, without a daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taskd.events import Bus
from taskd.metadata import Database, LeaseStore
from taskd.snapshots import Snapshotter, load
from taskd.snapshots.settings import SnapshotsConfig

__all__ = ["Machine"]


@dataclass
class Machine:
    """What outlives a daemon, and what one has of it."""

    root: Path
    database: Database
    bus: Bus

    def snapshotter(
        self, name: str = "overlayfs", config: SnapshotsConfig | None = None
    ) -> Snapshotter:
        """As a daemon has it that has just started."""
        return load(self.database, self.bus, self.root, config)[name]

    def folders(self, name: str = "overlayfs") -> list[str]:
        path = self.root / f"io.containerd.snapshotter.v1.{name}" / "snapshots"
        return sorted(each.name for each in path.iterdir())

    @property
    def leases(self) -> LeaseStore:
        return LeaseStore(self.database)
