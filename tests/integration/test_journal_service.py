"""The journal, read through `taskd.v1.Journal` and ``taskd events``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.daemons import Taskd, client
from harness.shell import COMMAND

from taskd.proto.containerd.services.events.v1 import EventsStub, PublishRequest
from taskd.proto.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    Namespace,
    NamespacesStub,
)
from taskd.proto.google.protobuf import Any
from taskd.proto.taskd.v1 import InfoRequest, JournalStub, ReadRequest
from taskd.wellknown import timestamp

EVENT = Any(type_url="a.Type", value=b"data")


def command(daemon: Taskd, *arguments: str) -> list[str]:
    address = ("--address", str(daemon.address))
    return [*COMMAND, "events", *address, *arguments]


def events(daemon: Taskd, *arguments: str) -> list[str]:
    """What ``taskd events`` prints of the past."""
    done = subprocess.run(
        command(daemon, "--no-follow", *arguments), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


async def read(stub: JournalStub, /, **request: object) -> list[int]:
    return [entry.position async for entry in stub.read(ReadRequest(**request))]


async def publish(daemon: Taskd, namespace: str, count: int, topic: str = "/a") -> None:
    async with client(daemon.address, namespace) as channel:
        for _ in range(count):
            await EventsStub(channel).publish(PublishRequest(topic=topic, event=EVENT))


@asynccontextmanager
async def following(daemon: Taskd, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command(daemon, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_line_is_that_of_ctr(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    ctr = subprocess.Popen(
        daemon.ctr_command("events", namespace=namespace), stdout=subprocess.PIPE
    )
    assert ctr.stdout is not None
    lines: list[str] = []
    async with client(daemon.address, namespace) as channel:
        # Until it is seen that ctr has subscribed.
        os.set_blocking(ctr.stdout.fileno(), False)
        with anyio.fail_after(20):
            while not (ctr.stdout.readline()):
                await NamespacesStub(channel).create(
                    CreateNamespaceRequest(namespace=Namespace(name=f"{namespace}-{len(lines)}"))
                )
                lines.append("")
                await anyio.sleep(0.1)
    after = len(events(daemon))
    rootless = ("--rootfs", str(rootfs), "one", "/bin/sh", "-c", "exit 3")
    daemon.ctr("run", "--label", "a=b", *rootless, namespace=namespace, check=False)
    daemon.ctr("containers", "delete", "one", namespace=namespace, check=False)
    ours = events(daemon, "--after", str(after))
    theirs: list[str] = []
    with anyio.fail_after(10):
        while len(theirs) < len(ours):
            if line := ctr.stdout.readline():
                theirs.append(line.decode().rstrip("\n"))
            await anyio.sleep(0.01)
    ctr.kill()
    ctr.communicate()
    assert ours == [newer_times(line) for line in theirs]
    topics = [line.split()[5] for line in ours]
    assert topics[-5:] == [
        *("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete")
    ]


def newer_times(line: str) -> str:
    """ctr 1.6 has times as RFC 3339 has them; 1.7 has their fields."""

    def digits(found: re.Match[str]) -> str:
        moment = datetime.fromtimestamp(int(found[1]), UTC)
        fraction = f".{int(found[2]):09}".rstrip("0").rstrip(".")
        return f'"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"'

    return re.sub(r'\{"seconds":(\d+),"nanos":(\d+)\}', digits, line)


async def test_positions_times_filters_and_limits(daemon: Taskd, namespace: str) -> None:
    async with client(daemon.address, namespace) as channel:
        journal = JournalStub(channel)
        info = await journal.info(InfoRequest())
        assert (info.first, info.last) == (1, 0)
        assert info.size > 0
        assert info.node
        assert await read(journal) == []
        await publish(daemon, namespace, 3)
        between = time.time_ns()
        await publish(daemon, namespace, 2, "/b")
        assert await read(journal) == [1, 2, 3, 4, 5]
        assert await read(journal, after=0) == [1, 2, 3, 4, 5]
        assert await read(journal, after=3) == [4, 5]
        assert await read(journal, after=5) == []
        assert await read(journal, since=timestamp(between)) == [4, 5]
        assert await read(journal, since=timestamp(0)) == [1, 2, 3, 4, 5]
        assert await read(journal, filters=['topic=="/a"'], limit=2) == [1, 2]
        assert await read(journal, filters=['topic=="/b"'], journal=info.journal) == [4, 5]
        assert await read(journal, filters=['topic=="/c"']) == []
        for request, status, words in (
            ({"after": 6}, Status.OUT_OF_RANGE, "the newest is that at position 5"),
            ({"filters": ["=="]}, Status.INVALID_ARGUMENT, "filter"),
            ({"journal": "x"}, Status.FAILED_PRECONDITION, f"this is journal {info.journal}"),
        ):
            with pytest.raises(GRPCError) as caught:
                await read(journal, **request)
            assert caught.value.status == status
            assert words in (caught.value.message or "")


async def test_what_retention_took_is_out_of_range(folder: Path, namespace: str) -> None:
    settings = '[events]\nmax_age = "10ms"\nnode = "here"\n'
    with Taskd(folder / "taskd", settings=settings) as daemon:
        await publish(daemon, namespace, 9)
        async with client(daemon.address, namespace) as channel:
            journal = JournalStub(channel)
            with anyio.fail_after(20):
                while (info := await journal.info(InfoRequest())).first < 9:
                    await anyio.sleep(0.1)
            assert info.node == "here"
            with pytest.raises(GRPCError, match="the first is that at position 9") as caught:
                await read(journal, after=3)
            assert caught.value.status == Status.OUT_OF_RANGE
            assert await read(journal, after=8) == [9]


async def test_thousands_are_read_while_more_are_published(daemon: Taskd, namespace: str) -> None:
    await publish(daemon, namespace, 2000)
    async with client(daemon.address, namespace) as channel, anyio.create_task_group() as group:
        group.start_soon(publish, daemon, namespace, 1000)
        request = ReadRequest(after=0, follow=True, limit=3000)
        positions = [entry.position async for entry in JournalStub(channel).read(request)]
    assert positions == list(range(1, 3001))


async def test_json_has_all_there_is(daemon: Taskd, namespace: str) -> None:
    await publish(daemon, namespace, 1)
    [line] = events(daemon, "--json", "--since", "1m", 'topic=="/a"')
    document = json.loads(line)
    assert document.pop("timestamp").endswith("Z")
    assert document == {
        "position": 1,
        "namespace": namespace,
        "topic": "/a",
        "type": "a.Type",
        "value": "ZGF0YQ==",
    }


async def test_it_goes_on_when_a_killed_daemon_is_back(daemon: Taskd, namespace: str) -> None:
    async with following(daemon, "--after", "0", "--json", "--reconnect") as process:
        for _ in range(4):
            await publish(daemon, namespace, 25)
            daemon.kill()
            daemon.start()
        assert process.stdout is not None
        with anyio.fail_after(30):
            lines = [json.loads(await process.stdout.readline()) for _ in range(100)]
        assert [line["position"] for line in lines] == list(range(1, 101))


async def test_without_that_it_says_where_to_go_on(daemon: Taskd, namespace: str) -> None:
    async with following(daemon, "--after", "0") as process:
        await publish(daemon, namespace, 2)
        assert process.stdout is not None
        for _ in range(2):
            await process.stdout.readline()
        daemon.kill()
        _, errors = await process.communicate()
        assert process.returncode == 1
        words = f"taskd: no daemon at {daemon.address}; go on with --after 2\n"
        assert errors.decode() == words


async def test_it_ends_with_its_reader(daemon: Taskd, namespace: str) -> None:
    await publish(daemon, namespace, 3000)
    line = " ".join(command(daemon, "--no-follow")) + " | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    async with following(daemon, "--after", "0") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        assert errors == b""


def test_a_bad_time_is_named(daemon: Taskd) -> None:
    done = subprocess.run(
        command(daemon, "--since", "yesterday"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "'yesterday' is neither a time such as" in done.stderr
