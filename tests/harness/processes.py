"""What a process uses, as the kernel tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["LIBCS_SIGNALS", "files", "proportional", "resident"]

LIBCS_SIGNALS = 1 << 31 | 1 << 32
"""Signals 32 and 33 in a mask: libc lets nobody change whether they are ignored, as CI's are."""


def resident(pid: int) -> float:
    """RSS in MB."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return float(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def proportional(pid: int) -> float:
    """PSS in MB, of a process and all that it has started."""
    found = 0.0
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found = float(next(line for line in rollup if line.startswith("Pss:")).split()[1]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += sum(map(proportional, map(int, (task / "children").read_text().split())))
    return found


def files(pid: int) -> int:
    """Open files."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
