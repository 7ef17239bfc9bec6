"""How long a container takes from its record to its removal, with the same shim and runc."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from bench.table import Sides, Table
from grpclib.client import Channel
from harness.containers import spec
from harness.daemons import client

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any

__all__ = ["four_clients", "one_client", "run"]

RUNTIME = "io.containerd.runc.v2"
RUNTIMES = {"containerd": RUNTIME, "taskd": RUNTIME, "before": RUNTIME}


async def run(
    channel: Channel,
    name: str,
    rootfs: Path,
    note: Callable[[str, float], None],
    runtime: str = RUNTIME,
    options: Any | None = None,
) -> None:
    """One lifecycle; `note` gets each step's name and its milliseconds."""
    containers, tasks = ContainersStub(channel), TasksStub(channel)
    begin = last = time.perf_counter()

    def step(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        note(what, (now - last) * 1e3)
        last = now

    container = Container(
        id=name,
        runtime=ContainerRuntime(name=runtime, options=options),
        spec=spec(rootfs, ["/bin/true"]),
    )
    await containers.create(CreateContainerRequest(container=container))
    step("container create")
    await tasks.create(CreateTaskRequest(container_id=name))
    step("create")
    await tasks.start(StartRequest(container_id=name))
    step("start")
    await tasks.wait(WaitRequest(container_id=name))
    step("wait")
    await tasks.delete(DeleteTaskRequest(container_id=name))
    step("delete")
    await containers.delete(DeleteContainerRequest(id=name))
    step("container delete")
    note("total", (last - begin) * 1e3)


def _ignore(what: str, sample: float) -> None:
    pass


async def one_client(
    sides: Sides,
    rounds: int = 40,
    title: str = "lifecycle, one client",
    runtimes: Mapping[str, str] = RUNTIMES,
    options: Any | None = None,
) -> Table:
    """`runtimes`: that of each side."""
    table = Table(title, "ms")
    async with AsyncExitStack() as stack:
        channels = {
            side: await stack.enter_async_context(client(daemon.address, namespace))
            for side, daemon, namespace in sides.alternate(1)
        }
        for number, (side, _, _) in enumerate(sides.alternate(rounds + 2)):

            def note(what: str, sample: float, side: str = side, warm: bool = number >= 4) -> None:
                if warm:
                    table.add(what, side, sample)

            name = f"one-{number}"
            await run(channels[side], name, sides.rootfs, note, runtimes[side], options)
    return table


async def four_clients(
    sides: Sides,
    rounds: int = 5,
    each: int = 5,
    title: str = "lifecycle, four clients",
    runtimes: Mapping[str, str] = RUNTIMES,
    options: Any | None = None,
) -> Table:
    table = Table(title, "containers/s, more is better")
    for number, (side, daemon, namespace) in enumerate(sides.alternate(rounds)):

        async def work(
            worker: int, address: Path, space: str, runtime: str, number: int = number
        ) -> None:
            async with client(address, space) as channel:
                for turn in range(each):
                    name = f"four-{number}-{worker}-{turn}"
                    await run(channel, name, sides.rootfs, _ignore, runtime, options)

        begin = time.perf_counter()
        async with anyio.create_task_group() as group:
            for worker in range(4):
                group.start_soon(work, worker, daemon.address, namespace, runtimes[side])
        table.add("rate", side, 4 * each / (time.perf_counter() - begin))
    return table
