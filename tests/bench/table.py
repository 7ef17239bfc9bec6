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
    before: Taskd | None = None
    """taskd as it was at another commit."""

    def alternate(self, rounds: int) -> list[tuple[str, Daemon, str]]:
        """Name, daemon, and namespace for each measurement; who is first changes every round.

        Each side has a namespace of its own, since the Go shim keeps runc's state by namespace.
        """
        sides: list[tuple[str, Daemon, str]] = [
            ("containerd", self.containerd, f"{self.namespace}-c"),
            ("taskd", self.taskd, f"{self.namespace}-t"),
        ]
        if self.before is not None:
            sides.insert(1, ("before", self.before, f"{self.namespace}-b"))
        return [side for number in range(rounds) for side in (sides, sides[::-1])[number % 2]]


@dataclass
class Table:
    """Rows of samples of all sides; printed as medians and taskd's ratios to the others."""

    title: str
    unit: str
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, side: str, sample: float) -> None:
        self.rows.setdefault(row, {}).setdefault(side, []).append(sample)

    def print(self) -> None:
        print(f"\n{self.title} [{self.unit}]")
        print(
            f"{'':26}{'taskd':>12}{'n':>7}{'containerd':>12}{'ratio':>9}{'before':>12}{'ratio':>9}"
        )
        for row, sides in self.rows.items():
            ours = statistics.median(sides["taskd"])
            line = f"{row:26}{ours:12.2f}{len(sides['taskd']):7}"
            for other in ("containerd", "before"):
                if samples := sides.get(other):
                    theirs = statistics.median(samples)
                    line += f"{theirs:12.2f}{ours / theirs:9.2f}"
                else:
                    line += f"{'':21}"
            print(line.rstrip(), flush=True)
