"""What a daemon itself costs: CPU for its work, and time to start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench import lifecycle
from bench.table import Sides, Table
from harness.daemons import client

from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest, TasksStub

__all__ = ["cold", "cpu", "lifecycles", "start"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int, *, children: bool = False) -> float:
    """Seconds that a process has used, by itself or with those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


async def lifecycles(sides: Sides, rounds: int = 6, each: int = 10) -> Table:
    table = Table("CPU of the daemon", "ms for a lifecycle")
    for number, (side, daemon, namespace) in enumerate(sides.alternate(rounds)):
        async with client(daemon.address, namespace) as channel:
            name = f"cpu-{number}"
            await lifecycle.run(channel, f"{name}-first", sides.rootfs, lambda *_: None)
            before = cpu(daemon.pid)
            for turn in range(each):
                await lifecycle.run(channel, f"{name}-{turn}", sides.rootfs, lambda *_: None)
            table.add("Go shim", side, (cpu(daemon.pid) - before) / each * 1e3)
    return table


async def start(sides: Sides, rounds: int = 7) -> Table:
    """From the start of the daemon's process to its answer to the first List."""
    table = Table("start-up without a task", "ms")
    for side, daemon, namespace in sides.alternate(rounds):
        daemon.stop()
        begin = time.perf_counter()
        daemon.start()
        async with client(daemon.address, namespace) as channel:
            await TasksStub(channel).list(ListTasksRequest())
        table.add("time", side, (time.perf_counter() - begin) * 1e3)
        table.add("CPU", side, cpu(daemon.pid) * 1e3)
    return table


def cold(sides: Sides, rounds: int = 20) -> Table:
    """``ctr run --rm`` under containerd, with its own shim, ours, and ours as it was."""
    table = Table("a container under containerd, its shim from cold", "ms")
    here = Path(sys.executable).parent
    shims = {"containerd": lifecycle.RUNTIME, "taskd": str(here / "containerd-shim-oci-v1")}
    if sides.before is not None:
        programs: Path = sides.before.programs  # type: ignore[attr-defined]
        named = ("containerd-shim-oci-v1", "containerd-shim-runc-v1")
        shims["before"] = str(next(programs / each for each in named if (programs / each).exists()))
    for number in range(rounds):
        for side in list(shims)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            sides.containerd.ctr(
                *("run", "--rm", "--runtime", shims[side], "--rootfs", str(sides.rootfs)),
                *(f"cold-{number}", "/bin/true"),
                namespace=f"{sides.namespace}-{side}",
            )
            table.add("ctr run --rm", side, (time.perf_counter() - begin) * 1e3)
    return table
