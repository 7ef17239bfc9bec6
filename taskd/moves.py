"""Moves of processes between cgroups, of which every container needs one.

The first move in a while waits some ten milliseconds, until all processors have taken note of it
(``cgroup_threadgroup_rwsem``, in the kernel's ``kernel/cgroup/cgroup.c``): a third of what a
``runc create`` takes. Those that follow soon do not wait. So whoever knows that a container is to
be made moves itself to where it is already, again and again for a moment, while the rest of what is
needed goes on.
"""

from __future__ import annotations

import _thread
import os
import time
from pathlib import Path

__all__ = ["expect"]

_SECONDS = 0.05
_PAUSE_SECONDS = 0.008

_expected_until = 0.0
_moving = False


def expect() -> None:
    """Make moves quick for a twentieth of a second; where that is not permitted, do nothing."""
    global _expected_until, _moving
    _expected_until = time.monotonic() + _SECONDS
    if not _moving:
        _moving = True
        # `threading` would wait until it runs.
        _thread.start_new_thread(_move, ())


def _move() -> None:
    global _moving
    try:
        place = _own_place()
        while time.monotonic() < _expected_until:
            place.write_text(str(os.getpid()))
            time.sleep(_PAUSE_SECONDS)
    except (OSError, StopIteration):
        pass
    finally:
        _moving = False


def _own_place() -> Path:
    """``cgroup.procs`` of a cgroup in which this process is."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    number, controllers, path = next(line.split(":", 2) for line in lines)
    folder = Path("/sys/fs/cgroup", "" if number == "0" else controllers.removeprefix("name="))
    return folder / path.lstrip("/") / "cgroup.procs"
