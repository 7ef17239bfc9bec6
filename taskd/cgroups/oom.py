"""When a container runs out of memory, as cgroup v1 tells it.

Source: the kernel's ``admin-guide/cgroup-v1/memory.rst``, section 10, "OOM Control"; containerd's
``metrics/cgroups/v1/oom.go``. With cgroup v2 its daemon leaves this to shims, and so do we.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import suppress

import anyio

from taskd.cgroups.v1 import Cgroup

__all__ = ["ooms"]


async def ooms(pid: int) -> AsyncGenerator[None]:
    """Each time that the memory cgroup of a process runs out of memory, until it is removed.

    Raises OSError if there is none that tells.
    """
    folder = Cgroup.of(pid).folder("memory")
    notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(folder / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (folder / "cgroup.event_control").write_text(f"{notice} {control}")
        finally:
            os.close(control)
        while True:
            await anyio.wait_readable(notice)
            with suppress(BlockingIOError):
                os.eventfd_read(notice)
            # The removal of the cgroup is a notice, too.
            if not (folder / "memory.oom_control").exists():
                return
            yield
    finally:
        os.close(notice)
