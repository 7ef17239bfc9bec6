"""Memory of a daemon that does nothing."""

from __future__ import annotations

import time
from pathlib import Path

from bench.table import Sides, Table

__all__ = ["idle"]


def idle(sides: Sides) -> Table:
    """Of daemons fresh from the start: what they did before does not count."""
    table = Table("idle daemon", "MB")
    for _, daemon, _ in sides.alternate(1):
        daemon.stop()
        daemon.start()
    time.sleep(2)
    for side, daemon, _ in sides.alternate(1):
        status = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        resident = next(line for line in status if line.startswith("VmRSS"))
        table.add("RSS", side, float(resident.split()[1]) / 1024)
    return table
