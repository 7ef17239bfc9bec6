"""What `taskd.client` costs beside generated stubs: ten containers at once, their output read."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import anyio
from bench.table import Sides, Table
from harness.daemons import client

from taskd.client import connect, spec
from taskd.grpc.channel import Channel
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

__all__ = ["ten"]

SCRIPT = ["/bin/sh", "-c", "echo hello; exit 3"]


async def ten(sides: Sides, rounds: int = 12) -> Table:
    table = Table("ten containers at once: run, output, exit, removal", "ms")
    folder = sides.rootfs.parent
    for side, daemon, namespace in sides.alternate(rounds):
        async with client(daemon.address, namespace) as channel:
            begin = time.perf_counter()
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(_raw, channel, namespace, f"r{number}", sides.rootfs, folder)
            table.add("stubs", side, (time.perf_counter() - begin) * 1e3)
        async with connect(daemon.address, namespace) as library:
            begin = time.perf_counter()

            async def one(number: int) -> None:
                async with library.run(sides.rootfs, SCRIPT, id=f"c{number}") as container:
                    assert await container.stdout.text() == "hello\n"
                    assert (await container.wait()).code == 3

            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(one, number)
            table.add("client", side, (time.perf_counter() - begin) * 1e3)
    return table


async def _raw(channel: Channel, namespace: str, name: str, rootfs: Path, folder: Path) -> None:
    """As one would write it with nothing but the stubs, and without any care for failures."""
    containers, tasks = ContainersStub(channel), TasksStub(channel)
    document = spec.container(spec.process(SCRIPT), rootfs, cgroup=f"/{namespace}/{name}")
    record = Container(
        id=name,
        runtime=ContainerRuntime(name="io.containerd.runc.v2"),
        spec=spec.packed("Spec", document),
    )
    await containers.create(CreateContainerRequest(container=record))
    fifo = folder / f"{namespace}-{name}"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    await tasks.create(CreateTaskRequest(container_id=name, stdout=str(fifo), stderr=str(fifo)))
    await tasks.start(StartRequest(container_id=name))
    output, arrived = bytearray(), asyncio.Event()

    def read() -> None:
        output.extend(os.read(reader, 65536))
        arrived.set()

    asyncio.get_running_loop().add_reader(reader, read)
    assert (await tasks.wait(WaitRequest(container_id=name))).exit_status == 3
    await arrived.wait()
    assert output == b"hello\n"
    asyncio.get_running_loop().remove_reader(reader)
    os.close(reader)
    fifo.unlink()
    await tasks.delete(DeleteTaskRequest(container_id=name))
    await containers.delete(DeleteContainerRequest(id=name))
