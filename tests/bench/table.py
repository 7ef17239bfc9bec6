"""Two sides' measurements, side by side."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from harness.daemons import Containerd, Daemon, Taskd

__all__ = ["Sides", "Table"]


@dataclass
class Sides:
    containerd: Containerd
    taskd: Taskd
    rootfs: Path
    namespace: str

    def alternate(self, rounds: int) -> list[tuple[str, Daemon, str]]:
        """Name, daemon, and namespace for each measurement; who is first changes every round.

        Each side has a namespace of its own, since the Go shim keeps runc's state by namespace.
        """
        pair = [
            ("containerd", self.containerd, f"{self.namespace}-c"),
            ("taskd", self.taskd, f"{self.namespace}-t"),
        ]
        return [side for number in range(rounds) for side in (pair, pair[::-1])[number % 2]]


@dataclass
class Table:
    """Rows of samples of both sides; printed as medians and taskd's ratio to containerd."""

    title: str
    unit: str
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, side: str, sample: float) -> None:
        self.rows.setdefault(row, {}).setdefault(side, []).append(sample)

    def print(self) -> None:
        print(f"\n{self.title} [{self.unit}]")
        print(f"{'':26}{'containerd':>12}{'taskd':>12}{'ratio':>9}{'n':>7}")
        for row, sides in self.rows.items():
            theirs, ours = (statistics.median(sides[side]) for side in ("containerd", "taskd"))
            count = len(sides["taskd"])
            print(f"{row:26}{theirs:12.2f}{ours:12.2f}{ours / theirs:9.2f}{count:7}", flush=True)
