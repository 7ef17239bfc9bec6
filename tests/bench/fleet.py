"""A hundred tasks at once: how long it takes to list them, and to find them again."""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio
from bench.lifecycle import RUNTIMES
from bench.table import Sides, Table
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
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
    KillRequest,
    ListTasksRequest,
    ListTasksResponse,
    StartRequest,
    TasksStub,
    WaitRequest,
)

__all__ = ["hundred"]

TASKS = 100
LIST = "/containerd.services.tasks.v1.Tasks/List"


class Raw(CodecBase):
    """Leaves messages as they are: what a client does with them is not measured."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


async def hundred(
    sides: Sides, rounds: int = 7, title: str = "", runtimes: Mapping[str, str] = RUNTIMES
) -> Table:
    """`restart`: from the start of the daemon's process to its answer to the first List."""
    table = Table(title or f"{TASKS} tasks", "ms")
    names = [f"many-{number}" for number in range(TASKS)]
    for side, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            for name in names:
                container = Container(
                    id=name,
                    runtime=ContainerRuntime(name=runtimes[side]),
                    spec=spec(sides.rootfs, ["/bin/sleep", "10000"]),
                )
                await ContainersStub(channel).create(CreateContainerRequest(container=container))
                await TasksStub(channel).create(CreateTaskRequest(container_id=name))
                await TasksStub(channel).start(StartRequest(container_id=name))
    for side, daemon, namespace in sides.alternate(rounds * 3):
        async with client(daemon.address, namespace, Raw()) as channel:
            method = channel.request(LIST, Cardinality.UNARY_UNARY, bytes, bytes)
            begin = time.perf_counter()
            async with method as stream:
                await stream.send_message(b"", end=True)
                answer = await stream.recv_message()
            table.add("List", side, (time.perf_counter() - begin) * 1e3)
            assert len(ListTasksResponse.parse(answer).tasks) == TASKS
    for side, daemon, namespace in sides.alternate(rounds):
        await anyio.to_thread.run_sync(daemon.stop)
        begin = time.perf_counter()
        await anyio.to_thread.run_sync(daemon.start)
        async with client(daemon.address, namespace) as channel:
            listed = (await TasksStub(channel).list(ListTasksRequest())).tasks
            table.add("restart", side, (time.perf_counter() - begin) * 1e3)
            assert len(listed) == TASKS
    for _, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            for name in names:
                await TasksStub(channel).kill(KillRequest(container_id=name, signal=9))
                await TasksStub(channel).wait(WaitRequest(container_id=name))
                await TasksStub(channel).delete(DeleteTaskRequest(container_id=name))
                await ContainersStub(channel).delete(DeleteContainerRequest(id=name))
    return table
