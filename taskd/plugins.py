"""The shims in Python that are installed: what the entry points of group ``taskd.shims`` name."""

from __future__ import annotations

import sysconfig
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

__all__ = ["GROUP", "executable", "installed"]

GROUP = "taskd.shims"
"""Names a subclass of `taskd.shim.Container` by a runtime's name: ``io.example.thing.v1``."""


@cache
def installed() -> dict[str, EntryPoint]:
    """The entry points, by the names of their runtimes."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def executable(runtime: str) -> Path:
    """Where the executable of an installed shim is: the one that containerd would look for."""
    *_, name, version = runtime.split(".")
    return Path(sysconfig.get_path("scripts"), f"containerd-shim-{name}-{version}")
