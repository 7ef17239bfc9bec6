"""Events: from an exit to whoever has subscribed, and how many there can be."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from contextlib import AsyncExitStack

from bench.lifecycle import RUNTIME, run
from bench.table import Sides, Table
from grpclib.client import Channel
from harness.containers import spec
from harness.daemons import Daemon, client
from harness.load import publish_as_shims
from harness.processes import files, resident

from taskd.proto.containerd.events import TaskExit
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import EventsStub, SubscribeRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    StartRequest,
    TasksStub,
)

__all__ = ["exits", "growth", "rate"]


async def exits(sides: Sides, rounds: int = 1000) -> Table:
    """From the SIGKILL that ends a container's process to its exit event at a subscriber."""
    table = Table("exit to subscriber", "ms")
    samples: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        sides_open = {
            side: await stack.enter_async_context(_Exits(daemon.address, namespace, sides))
            for side, daemon, namespace in sides.alternate(1)
        }
        for number, (side, _, _) in enumerate(sides.alternate(rounds)):
            found = await sides_open[side].one(f"exit-{number}")
            samples.setdefault(side, []).append(found)
    for side, of_side in samples.items():
        quantiles = statistics.quantiles(of_side, n=100)
        for row, value in (("p50", quantiles[49]), ("p90", quantiles[89]), ("p99", quantiles[98])):
            table.add(row, side, value)
    return table


class _Exits:
    """A client and a subscriber of one side; use it in ``async with``."""

    def __init__(self, address: object, namespace: str, sides: Sides) -> None:
        self._channels = AsyncExitStack()
        self._address, self._namespace, self._sides = address, namespace, sides
        self._heard: dict[int, asyncio.Future[float]] = {}

    async def __aenter__(self) -> _Exits:
        self._channel: Channel = await self._channels.enter_async_context(
            client(self._address, self._namespace)
        )
        own = await self._channels.enter_async_context(client(self._address, self._namespace))
        self._listener = asyncio.create_task(self._listen(own))
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self._channels.aclose()

    async def _listen(self, channel: Channel) -> None:
        wanted = f'topic=="/tasks/exit",namespace=="{self._namespace}"'
        async for envelope in EventsStub(channel).subscribe(SubscribeRequest(filters=[wanted])):
            now = time.perf_counter()
            event = TaskExit.parse(envelope.event.value)
            if waiting := self._heard.pop(event.pid, None):
                waiting.set_result(now)

    async def one(self, name: str) -> float:
        tasks, containers = TasksStub(self._channel), ContainersStub(self._channel)
        container = Container(
            id=name,
            runtime=ContainerRuntime(name=RUNTIME),
            spec=spec(self._sides.rootfs, ["/bin/sleep", "1000"]),
        )
        await containers.create(CreateContainerRequest(container=container))
        pid = (await tasks.create(CreateTaskRequest(container_id=name))).pid
        await tasks.start(StartRequest(container_id=name))
        self._heard[pid] = asyncio.get_running_loop().create_future()
        waiting = self._heard[pid]
        begin = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        heard = await asyncio.wait_for(waiting, 20)
        await tasks.delete(DeleteTaskRequest(container_id=name))
        await containers.delete(DeleteContainerRequest(id=name))
        return (heard - begin) * 1e3


async def rate(sides: Sides, rounds: int = 3, count: int = 20_000) -> Table:
    """Events that shims send, until one subscriber has them all.

    containerd drops events of a subscriber that is slow; then the row has no sample of it.
    """
    table = Table("events from shims to one subscriber", "events/s, more is better")
    for side, daemon, namespace in sides.alternate(rounds):
        async with client(daemon.address, namespace) as channel:
            done = asyncio.Event()

            async def listen(channel: Channel = channel, done: asyncio.Event = done) -> None:
                seen = 0
                stream = EventsStub(channel).subscribe(SubscribeRequest(filters=["topic~=/load/"]))
                async for _ in stream:
                    seen += 1
                    if seen == count:
                        done.set()

            listener = asyncio.create_task(listen())
            await asyncio.sleep(0.5)
            begin = time.perf_counter()
            await publish_as_shims(daemon, count)
            await asyncio.wait_for(done.wait(), 60)
            table.add("rate", side, count / (time.perf_counter() - begin))
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
    return table


async def growth(sides: Sides, lifecycles: int = 2000) -> Table:
    """What is left of so many lifecycles, after a tenth as many to warm up."""
    table = Table(f"growth over {lifecycles} lifecycles, four clients", "MB; files")
    for side, daemon, namespace in sides.alternate(1):
        await _lifecycles(daemon, namespace, sides, lifecycles // 10)
        memory, opened = resident(daemon.pid), files(daemon.pid)
        await _lifecycles(daemon, namespace, sides, lifecycles)
        await asyncio.sleep(1)
        table.add("RSS before", side, memory)
        table.add("RSS after", side, resident(daemon.pid))
        table.add("open files before", side, opened)
        table.add("open files after", side, files(daemon.pid))
    return table


async def _lifecycles(daemon: Daemon, namespace: str, sides: Sides, count: int) -> None:
    async def work(worker: int) -> None:
        async with client(daemon.address, namespace) as channel:
            for turn in range(count // 4):
                name = f"grow-{worker}-{turn}"
                await run(channel, name, sides.rootfs, lambda _what, _sample: None)

    await asyncio.gather(*(work(worker) for worker in range(4)))
