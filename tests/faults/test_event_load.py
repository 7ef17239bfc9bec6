"""More events and more subscribers than anybody has; and no room for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from faults.lifecycles import told, whole
from grpclib.client import Stream
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.databases import copied
from harness.leaks import leaving_nothing
from harness.load import publish_as_shims
from harness.mounts import tmpfs
from harness.real import need
from harness.shell import COMMAND

from taskd.events import Bus, Envelope, Journal
from taskd.proto.containerd.events import TaskExit
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import (
    EventsStub,
    PublishRequest,
    SubscribeRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    ListTasksRequest,
    StartRequest,
    TasksStub,
)
from taskd.proto.containerd.types import Envelope as EnvelopeMessage
from taskd.proto.google.protobuf import Any

SUBSCRIBERS = 1000


async def test_one_in_a_thousand_never_reads(daemon: Taskd) -> None:
    """The others get everything meanwhile; so does it, once it reads."""
    count = 40  # of 2,000 bytes: more than HTTP/2 sends to who does not read
    subscribe = "/containerd.services.events.v1.Events/Subscribe"

    async def read(stream: Stream[SubscribeRequest, EnvelopeMessage]) -> list[str]:
        found = []
        while len(found) < count:
            message = await stream.recv_message()
            assert message is not None
            found.append(message.topic)
        return found

    async with AsyncExitStack() as stack:
        streams = []
        # The one alone: who shares a connection with it waits for it, by HTTP/2's flow control.
        for subscribers in (1, *[(SUBSCRIBERS - 1) // 9] * 9):
            channel = await stack.enter_async_context(client(daemon.address, "default"))
            for _ in range(subscribers):
                stream = channel.request(
                    subscribe, Cardinality.UNARY_STREAM, SubscribeRequest, EnvelopeMessage
                )
                await stack.enter_async_context(stream)
                stack.push_async_callback(stream.cancel)
                await stream.send_message(SubscribeRequest(filters=["topic~=/load/"]), end=True)
                await stream.recv_initial_metadata()
                streams.append(stream)
        never, *others = streams
        topics = [f"/load/{number}" for number in range(count)]

        async def publish() -> None:
            async with client(daemon.address, "default") as own:
                event = Any(type_url="a.Type", value=bytes(2000))
                for topic in topics:
                    await EventsStub(own).publish(PublishRequest(topic=topic, event=event))

        _, *all_found = await asyncio.gather(publish(), *(read(stream) for stream in others))
        assert all_found == [topics] * len(others)
        assert await read(never) == topics


async def test_a_thousand_subscribers_and_a_hundred_thousand_events(folder: Path) -> None:
    """On the bus itself: each of them sees each event, in order."""
    count = 100_000
    event = Envelope(1, "default", "/load", None)
    with Journal(folder / "events.db") as journal:
        bus = Bus(journal)
        ready = 0

        async def read() -> int:
            nonlocal ready
            async with bus.subscribe(()) as subscription:
                ready += 1
                last = 0
                while last < count:
                    batch = await subscription.next_batch()
                    assert batch[0].position == last + 1
                    assert batch[-1].position == last + len(batch)
                    last = batch[-1].position
            return last

        readers = [asyncio.create_task(read()) for _ in range(SUBSCRIBERS)]
        async with bus.subscribe(()) as never:
            while ready < SUBSCRIBERS:
                await asyncio.sleep(0.01)
            for _ in range(count // 1000):
                await asyncio.gather(*(bus.forward(event) for _ in range(1000)))
            assert await asyncio.gather(*readers) == [count] * SUBSCRIBERS
            first = await never.next_batch()
            assert first[0].position == 1


async def test_a_subscriber_is_killed_and_goes_on(daemon: Taskd) -> None:
    count = 20_000
    publishing = asyncio.create_task(publish_as_shims(daemon, count))
    found: list[int] = []
    ends = 0
    while len(found) < count:
        after = found[-1] if found else 0
        reader = await asyncio.create_subprocess_exec(
            *(*COMMAND, "events", "--address", str(daemon.address)),
            *("--json", "--after", str(after), "topic~=/load/"),
            stdout=subprocess.PIPE,
        )
        assert reader.stdout is not None
        with anyio.fail_after(60):
            while len(found) < count and len(found) < (ends + 1) * count // 4:
                found.append(json.loads(await reader.stdout.readline())["position"])
        reader.kill()
        await reader.communicate()
        ends += 1
    await publishing
    assert found == list(range(1, count + 1))
    assert ends == 4


@pytest.fixture
def cramped(folder: Path) -> Iterator[Taskd]:
    """A taskd whose root folder is a file system of 4 MiB."""
    need("containerd-shim-runc-v2", "runc")
    (folder / "taskd").mkdir()
    with (
        tmpfs(folder / "taskd/root", "size=4m"),
        Taskd(folder / "taskd", "--log-level", "debug") as running,
    ):
        yield running
    print(running.log.read_text())


async def test_the_disk_is_full(cramped: Taskd, namespace: str, rootfs: Path) -> None:
    """Calls fail clearly, nothing is corrupted, and it goes on when there is room."""
    daemon, filler = cramped, cramped.root / "filler"
    with leaving_nothing(daemon, namespace):
        async with client(daemon.address, namespace) as channel:
            tasks = TasksStub(channel)
            for name in ("one", "two"):
                record = Container(
                    id=name,
                    runtime=ContainerRuntime(name="io.containerd.runc.v2"),
                    spec=spec(rootfs, ["sleep", "1000"]),
                )
                await ContainersStub(channel).create(CreateContainerRequest(container=record))
            pid = (await tasks.create(CreateTaskRequest(container_id="one"))).pid
            await tasks.start(StartRequest(container_id="one"))
            # Full it stays only if there is no log whose emptying would make room.
            with anyio.fail_after(30):
                while any(log.stat().st_size for log in daemon.root.glob("*.db-wal")):
                    await anyio.sleep(0.1)
            fill(filler)
            await fill_journal(channel)
            with pytest.raises(GRPCError) as caught:
                await tasks.create(CreateTaskRequest(container_id="two"))
            assert caught.value.status == Status.RESOURCE_EXHAUSTED, caught.value.message
            assert "full" in (caught.value.message or "")
            os.kill(pid, signal.SIGKILL)
            # What only reads goes on.
            with anyio.fail_after(20):
                while True:
                    [task] = (await tasks.list(ListTasksRequest())).tasks
                    if task.status.name == "STOPPED":
                        break
                    await anyio.sleep(0.05)
            assert "exit" not in told(daemon.root, namespace)["one"]

            filler.unlink()
            with anyio.fail_after(20):
                while "exit" not in told(daemon.root, namespace)["one"]:
                    await anyio.sleep(0.1)
            exited = exits(daemon.root, namespace)
            assert [(each.container_id, each.pid, each.exit_status) for each in exited] == [
                ("one", pid, 128 + signal.SIGKILL)
            ]
            await tasks.delete(DeleteTaskRequest(container_id="one"))
            await tasks.create(CreateTaskRequest(container_id="two"))
            await tasks.start(StartRequest(container_id="two"))
            await tasks.kill(KillRequest(container_id="two", signal=9))
            with anyio.fail_after(20):
                while "exit" not in told(daemon.root, namespace)["two"]:
                    await anyio.sleep(0.1)
            await tasks.delete(DeleteTaskRequest(container_id="two"))
            for name in ("one", "two"):
                await ContainersStub(channel).delete(DeleteContainerRequest(id=name))
    steps = told(daemon.root, namespace)
    assert {name: each for name, each in steps.items() if not whole(each)} == {}
    for file in ("events.db", "metadata.db"):
        with copied(daemon.root / file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (65536, 1024):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue


async def fill_journal(channel: object) -> None:
    """Publish until there is no room for more."""
    event = Any(type_url="a.Type", value=bytes(2000))
    for _ in range(10_000):
        try:
            await EventsStub(channel).publish(PublishRequest(topic="/filler", event=event))
        except GRPCError as exc:
            assert exc.status == Status.RESOURCE_EXHAUSTED
            assert "full" in (exc.message or "")
            return
    raise AssertionError("the disk is never full")


def exits(root: Path, namespace: str) -> list[TaskExit]:
    with copied(root / "events.db") as connection:
        rows = connection.execute(
            "SELECT value FROM events WHERE namespace = ? AND topic = '/tasks/exit'"
            " ORDER BY position",
            (namespace,),
        )
        return [TaskExit.parse(value) for (value,) in rows]
