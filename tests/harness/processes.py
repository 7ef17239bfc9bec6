"""What a process uses, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LIBCS_SIGNALS", "files", "resident"]

LIBCS_SIGNALS = 1 << 31 | 1 << 32
"""Signals 32 and 33 in a mask: libc lets nobody change whether they are ignored, as CI's are."""


def resident(pid: int) -> float:
    """RSS in MB."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return float(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def files(pid: int) -> int:
    """Open files."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
