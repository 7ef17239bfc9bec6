"""What the kernel's control groups tell about the processes in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import betterproto2

from taskd.cgroups import v1, v2

__all__ = ["Cgroup", "of"]


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
