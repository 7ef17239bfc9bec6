"""Removals while the daemon's records cannot be read, or what was written has not been read."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from taskd.client.streams import Streams
from taskd.errors import NotFound, Unavailable
from taskd.events import Bus, Journal
from taskd.labels import REMOVE, STREAMS
from taskd.metadata import Container
from taskd.proto.containerd.events import TaskExit
from taskd.restarts import Removals, removals
from taskd.runtime.types import Status, Stdio, TaskState
from taskd.wellknown import pack


class Records:
    """Has one container, which is to go, and fails the first time that it is asked for some."""

    def __init__(self, *failures: str) -> None:
        self.there = [Container("one", labels={REMOVE: "one"})]
        self.failures = set(failures)

    def _fail_once(self, name: str) -> None:
        if name in self.failures:
            self.failures.remove(name)
            raise Unavailable("the disk is away")

    def labelled(self, key: str) -> list[tuple[str, Container]]:
        self._fail_once("labelled")
        return [("space", each) for each in self.there if key in each.labels]

    def get(self, namespace: str, id: str) -> Container:  # noqa: A002
        self._fail_once("get")
        for each in self.there:
            return each
        raise NotFound(id)

    async def delete(self, namespace: str, id: str) -> None:  # noqa: A002
        self.there.clear()


class NoTasks:
    async def find(self, namespace: str, id: str) -> None:  # noqa: A002
        return None

    async def delete(self, namespace: str, id: str) -> None:  # noqa: A002
        raise NotFound(id)


async def test_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "RETRY_SECONDS", 0.01)
    records: Any = Records("labelled", "get")
    tasks: Any = NoTasks()
    with Journal(tmp_path / "events.db") as journal:
        async with Removals(records, tasks, {}, Bus(journal)).running():
            with anyio.fail_after(60):
                while records.there:
                    await anyio.sleep(0.01)
    assert not records.failures


async def test_one_that_is_gone_before_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shim died: an exit is told, and then there is no task."""
    monkeypatch.setattr(removals, "MAKING_SECONDS", float("inf"))
    records: Any = Records()
    records.there = [replace(each, created_at=time.time_ns()) for each in records.there]
    tasks: Any = NoTasks()
    with Journal(tmp_path / "events.db") as journal:
        bus = Bus(journal)
        async with Removals(records, tasks, {}, bus).running():
            await anyio.wait_all_tasks_blocked()
            assert records.there  # it may be in the making
            await bus.publish("space", "/tasks/exit", pack(TaskExit(container_id="one", id="one")))
            with anyio.fail_after(60):
                while records.there:
                    await anyio.sleep(0.01)


class Ended:
    """One task that has ended, and a client that reads what it has written."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.asked = anyio.Event()
        self.read_first = False

    async def find(self, namespace: str, id: str) -> TaskState:  # noqa: A002
        self.asked.set()
        stdio = Stdio(stdout=self.streams.path("stdout"), stderr=self.streams.path("stderr"))
        return TaskState(status=Status.STOPPED, stdio=stdio)

    async def delete(self, namespace: str, id: str) -> None:  # noqa: A002
        self.read_first = all(each.ended for each in self.streams.outputs)


async def closing() -> None: ...


async def test_what_is_being_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "READ_SECONDS", 0.01)
    home = tmp_path / f"{STREAMS}home"
    streams = Streams.make(home, stdin=False, output=True, tty=False, close=closing)
    writers = [os.open(each.path, os.O_WRONLY | os.O_NONBLOCK) for each in streams.outputs]
    streams.opened()
    tasks: Any = Ended(streams)
    records: Any = Records()
    with Journal(tmp_path / "events.db") as journal:
        async with Removals(records, tasks, {}, Bus(journal)).running():
            with anyio.fail_after(60):
                await tasks.asked.wait()
                for writer in writers:
                    await anyio.sleep(0.05)
                    assert records.there
                    os.close(writer)
                while records.there:
                    await anyio.sleep(0.01)
    assert tasks.read_first
    assert not home.exists()
