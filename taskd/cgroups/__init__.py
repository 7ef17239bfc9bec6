"""What the kernel's control groups tell about the processes in them."""

from __future__ import annotations

import _thread
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import betterproto2

from taskd.cgroups import v1, v2

__all__ = ["Cgroup", "expect_moves", "of"]


class Cgroup(Protocol):
    """The control groups of one process, of whichever version."""

    def stats(self) -> betterproto2.Message:
        """Usage now, in containerd's message of that version."""

    def ooms(self) -> AsyncGenerator[None]:
        """Each time that it runs out of memory, until it is removed.

        Raises OSError if it does not tell.
        """


def of(pid: int) -> Cgroup:
    """The control group of a process. Raises OSError if there is no such process."""
    # A hybrid has version 2 elsewhere, without the controllers: that counts as version 1.
    if (v2.ROOT / "cgroup.controllers").exists():
        return v2.Cgroup.of(pid)
    return v1.Cgroup.of(pid)


def expect_moves() -> None:
    """Let the kernel prepare for a move between cgroups, while the caller does something else.

    The first move in a while waits some ten milliseconds until all processors have taken note
    (``cgroup_threadgroup_rwsem``, in the kernel's ``kernel/cgroup/cgroup.c``), a third of what a
    ``runc create`` takes. A move to where we are already is enough.
    """
    # `threading` would wait until it runs.
    _thread.start_new_thread(_move_to_the_same, ())


def _move_to_the_same() -> None:
    with suppress(OSError, StopIteration):
        cgroup = Path(f"/proc/{os.getpid()}/cgroup").read_text().splitlines()
        number, controllers, path = next(line.split(":", 2) for line in cgroup)
        folder = Path("/sys/fs/cgroup", "" if number == "0" else controllers.removeprefix("name="))
        (folder / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
