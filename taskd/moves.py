"""Moves of processes between cgroups, of which every container needs one.

The first move in a while waits some ten milliseconds, until all processors have taken note of it
(``cgroup_threadgroup_rwsem``, in the kernel's ``kernel/cgroup/cgroup.c``): a third of what a
``runc create`` takes. Those that follow soon do not wait. So whoever knows that a container is to
be made moves a thread of its own to where it is already, again and again for a moment, while the
rest of what is needed goes on.
"""

from __future__ import annotations

import _thread
import os
import time
from pathlib import Path

from taskd import procfs

__all__ = ["expect"]

_SECONDS = 0.05
_PAUSE_SECONDS = 0.008
_PLACES = Path("/proc/thread-self/cgroup")
_PLACES_BYTES = 1 << 16

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
    own = str(_thread.get_native_id()).encode()
    known, threads = b"", Path()
    try:
        with _PLACES.open("rb") as places:
            while time.monotonic() < _expected_until:
                # Only this thread, which soon ends: who moves the process meanwhile has moved it.
                if (found := os.pread(places.fileno(), _PLACES_BYTES, 0)) != known:
                    known, threads = found, _own_threads()
                with threads.open("wb", buffering=0) as file:
                    file.write(own)
                time.sleep(_PAUSE_SECONDS)
    except (OSError, StopIteration):
        pass
    finally:
        _moving = False


def _own_threads() -> Path:
    """The file of a cgroup's threads, of one in which this thread is."""
    number, controllers, path = next(procfs.cgroups("thread-self"))
    if number == "0":
        return Path("/sys/fs/cgroup", path.lstrip("/"), "cgroup.threads")
    hierarchy = ",".join(controllers).removeprefix("name=")
    return Path("/sys/fs/cgroup", hierarchy, path.lstrip("/"), "tasks")
