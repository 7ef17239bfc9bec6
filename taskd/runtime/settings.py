"""Where the bundles of shims are, and how long shims are waited for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from taskd.runtime.pool import PoolLimits

__all__ = ["Place", "Settings", "Timeouts"]


class Timeouts(NamedTuple):
    """Bounds, in seconds, on waiting for a shim (containerd: ``io.containerd.timeout.shim.*``)."""

    start: float = 60.0
    """For ``start`` to print an address. containerd has no such bound."""
    load: float = 5.0
    """For a shim found at start-up to answer."""
    cleanup: float = 5.0
    """For a ``delete`` command."""
    shutdown: float = 3.0
    """For a shim to agree to end."""
    answer: float = 2.0
    """For a process to answer that is to get another container."""


class Settings(NamedTuple):
    root: Path
    """Holds the work folders of bundles."""
    state: Path
    """Holds the bundles."""
    timeouts: Timeouts = Timeouts()
    limits: PoolLimits = PoolLimits()
    """Of the processes that hold many containers."""


class Place(NamedTuple):
    """Where the bundles of one sort are."""

    root: Path
    """Holds their work folders."""
    state: Path
