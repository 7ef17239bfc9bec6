"""Memory of a daemon that does nothing."""

from __future__ import annotations

import time

from bench.table import Sides, Table
from harness.processes import resident

__all__ = ["idle"]


def idle(sides: Sides) -> Table:
    """Of daemons fresh from the start: what they did before does not count."""
    table = Table("idle daemon", "MB")
    for _, daemon, _ in sides.alternate(1):
        daemon.stop()
        daemon.start()
    time.sleep(2)
    for side, daemon, _ in sides.alternate(1):
        table.add("RSS", side, resident(daemon.pid))
    return table
