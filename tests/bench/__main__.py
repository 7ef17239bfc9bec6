"""taskd beside containerd: both run at once, rounds alternate, ratios of medians count.

    make bench                  # everything
    make bench BENCH="get"      # what is named
    make bench AGAINST=COMMIT   # taskd as it was there, as a third
    make bench POOL=10          # with so many containers to a process of a shim in Python

Absolute times depend on the machine, and on how busy it is; ratios hold.
"""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio
from bench import (
    before,
    calls,
    client,
    content,
    costs,
    events,
    fleet,
    lifecycle,
    memory,
    ps,
    pull,
    shims,
    snapshots,
    unpack,
    views,
)
from bench.table import Sides, Table
from harness.containers import make_rootfs
from harness.daemons import Containerd, Taskd

BENCHMARKS: dict[str, Callable[[Sides], Table | list[Table]]] = {
    "lifecycle": lambda sides: anyio.run(lifecycle.one_client, sides),
    "clients": lambda sides: anyio.run(lifecycle.four_clients, sides),
    "get": lambda sides: anyio.run(calls.get, sides),
    "cpu": lambda sides: anyio.run(costs.lifecycles, sides),
    "start": lambda sides: anyio.run(costs.start, sides),
    "cold": costs.cold,
    "content": content.get,
    "snapshots": lambda sides: anyio.run(snapshots.layers, sides),
    "pull": pull.image,
    "unpack": lambda sides: anyio.run(unpack.unpack, sides),
    "unpack-get": lambda sides: anyio.run(unpack.noticed, sides),
    "unpack-memory": lambda sides: anyio.run(unpack.memory, sides),
    "exits": lambda sides: anyio.run(events.exits, sides),
    "events": lambda sides: anyio.run(events.rate, sides),
    "hundred": lambda sides: anyio.run(fleet.hundred, sides),
    "hundred-own": lambda sides: anyio.run(shims.hundred, sides),
    "growth": lambda sides: anyio.run(events.growth, sides),
    "runc": lambda sides: anyio.run(shims.runc, sides),
    "crun": lambda sides: anyio.run(shims.crun, sides),
    "process": lambda sides: anyio.run(shims.host_process, sides),
    "execs": lambda sides: anyio.run(shims.execs, sides),
    "weight": lambda sides: anyio.run(shims.memory, sides),
    "shared": lambda sides: anyio.run(shims.shared_memory, sides),
    "flow": lambda sides: anyio.run(shims.throughput, sides),
    "ps": ps.hundred,
    "client": lambda sides: anyio.run(client.ten, sides),
    "views": lambda sides: anyio.run(views.looking, sides),
    "memory": memory.idle,
}


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    size = os.environ.get("POOL", "")
    pool = f"pool = {size}\n" if size else ""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (
            Containerd(folder / "c") as containerd,
            Taskd(folder / "t", "--log-level", "warn", settings=f"{shims.SETTINGS}{pool}") as taskd,
            before.daemon(folder / "b", os.environ.get("AGAINST", "")) as other,
        ):
            sides = Sides(
                containerd=containerd,
                taskd=taskd,
                rootfs=make_rootfs(folder / "rootfs"),
                namespace=f"bench-{uuid.uuid4().hex[:8]}",
                before=other,
            )
            for benchmark in chosen:
                tables = BENCHMARKS[benchmark](sides)
                for table in tables if isinstance(tables, list) else [tables]:
                    table.print()


main()
