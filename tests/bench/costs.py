"""What a daemon itself costs: CPU for its work, and time to start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import lifecycle
from bench.table import Sides, Table
from harness.daemons import client

from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest, TasksStub

__all__ = ["lifecycles", "start"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds that a process has used, by itself."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


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
