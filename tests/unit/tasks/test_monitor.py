"""The monitor, with a shim that is none."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.disks import FAULTS, Fault
from harness.mounts import tmpfs

from taskd.errors import TaskdError
from taskd.events import Bus, Journal
from taskd.proto.containerd.events import TaskExit
from taskd.runtime.bundle import Bundle
from taskd.runtime.shim import Shim, State, Tenant
from taskd.runtime.task import Task
from taskd.runtime.types import CreateOptions, Exit, Status, TaskState
from taskd.tasks import Monitor
from taskd.wellknown import pack, timestamp, unpack

PID = 42


def tenant(folder: Path) -> Tenant:
    shim = Shim("unix:///no.sock", folder / "no.sock", State.SERVING)
    return Tenant(Bundle("default", "one", folder), shim)


class Stopped:
    """A task whose init process has exited; of the shim's API, what the monitor calls."""

    tells_oom = True

    async def wait(self, exec_id: str) -> Exit:
        return Exit(0, 0, time.time_ns())


async def test_what_is_deleted_before_it_is_watched_is_told_once(tmp_path: Path) -> None:
    """A client that has waited for the daemon may delete what that has only just found."""
    api: Any = Stopped()
    with Journal(tmp_path / "events.db") as journal:
        async with anyio.create_task_group() as group:
            monitor = Monitor(Bus(journal), journal, group)
            spawn = group.start_soon
            task = Task(tenant(tmp_path), api, monitor, spawn)
            task.process("").pid = PID
            await monitor.found(task, TaskState(pid=PID, status=Status.STOPPED))
            await monitor.reconcile({("default", "one")})
            await task.deleted(Exit(PID, 0, time.time_ns()))
            await anyio.wait_all_tasks_blocked()
        told = [entry.envelope.topic for entry in journal.read(0, 100)]
    assert told == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


class Living:
    """A task of which processes exit when the test says so."""

    tells_oom = True

    def __init__(self) -> None:
        self.exits: dict[str, anyio.Event] = defaultdict(anyio.Event)

    async def start(self, exec_id: str) -> int:
        return PID + len(exec_id)

    async def wait(self, exec_id: str) -> Exit:
        await self.exits[exec_id].wait()
        return Exit(PID + len(exec_id), 7, time.time_ns())

    async def delete(self, exec_id: str) -> Exit:
        return Exit(PID + len(exec_id), 7, time.time_ns())


@asynccontextmanager
async def a_task(folder: Path, journal: Journal) -> AsyncIterator[tuple[Task, Living, Monitor]]:
    living = Living()
    api: Any = living
    async with anyio.create_task_group() as group:
        monitor = Monitor(Bus(journal), journal, group)
        made = Task(tenant(folder), api, monitor, group.start_soon)
        made.process("").pid = PID
        yield made, living, monitor
        group.cancel_scope.cancel()


def told(journal: Journal) -> list[tuple[str, str]]:
    """What the journal has of processes, in order: the topic's end, and the exec's id."""
    found = []
    for entry in journal.read(0, 100):
        event = entry.envelope.event
        message: Any = unpack(event) if event else None
        name = getattr(message, "exec_id", "") or getattr(message, "id", "")
        found.append((entry.envelope.topic.rpartition("/")[2], "" if name == "one" else name))
    return found


WHOLE = [
    *(("create", ""), ("start", ""), ("exec-started", "two"), ("exit", "two")),
    *(("exit", ""), ("delete", "")),
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_the_journal_cannot_take_is_told_when_it_can(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and in order; nobody need call anything for it."""
    monkeypatch.setattr("taskd.tasks.monitor._RETRY_SECONDS", 0.05)
    monkeypatch.setattr("taskd.events.journal.PATIENCE_SECONDS", 0.05)
    with tmpfs(tmp_path / "small", "size=1m") as folder, Journal(folder / "events.db") as journal:
        async with a_task(tmp_path, journal) as (task, living, monitor):
            await monitor.created(task, CreateOptions("any"))
            await task.start("")
            with fault(folder):
                await task.start("two")
                living.exits["two"].set()
                await anyio.sleep(0.2)
                await task.delete_process("two")
                living.exits[""].set()
                await anyio.sleep(0.2)
                with pytest.raises(TaskdError):
                    await monitor.created(task, CreateOptions("any"))
                await task.deleted(Exit(PID, 7, time.time_ns()))
                await anyio.sleep(0.2)
                with suppress(TaskdError):  # without memory there is no reading either
                    assert told(journal) == WHOLE[:2]
            with anyio.fail_after(10):
                while len(told(journal)) < len(WHOLE):
                    await anyio.sleep(0.02)
            await anyio.sleep(0.2)
            assert told(journal) == WHOLE
            assert not monitor._steps


async def test_the_exits_of_execs_come_first(tmp_path: Path) -> None:
    """With a shared pid namespace the shim kills them when init has ended."""
    with Journal(tmp_path / "events.db") as journal:
        async with a_task(tmp_path, journal) as (task, living, monitor):
            await monitor.created(task, CreateOptions("any"))
            await task.start("")
            for name in ("two", "three"):
                await task.start(name)
            living.exits[""].set()
            await anyio.sleep(0.1)
            living.exits["two"].set()
            await anyio.sleep(0.1)
            living.exits["three"].set()
            with anyio.fail_after(5):
                while ("exit", "") not in told(journal):
                    await anyio.sleep(0.01)
            assert told(journal)[-3:] == [("exit", "two"), ("exit", "three"), ("exit", "")]


async def test_an_exec_that_does_not_end_holds_up_no_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.tasks.monitor._LAST_WORDS_SECONDS", 0.05)
    with Journal(tmp_path / "events.db") as journal:
        async with a_task(tmp_path, journal) as (task, living, monitor):
            await monitor.created(task, CreateOptions("any"))
            await task.start("")
            await task.start("two")
            living.exits[""].set()
            with anyio.fail_after(5):
                while told(journal)[-1] != ("exit", ""):
                    await anyio.sleep(0.01)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_deletion_tells_what_the_shim_answered(tmp_path: Path, answered: bool) -> None:
    """Of a task that never ran it knows less than the exit that was told, as containerd's does."""
    with Journal(tmp_path / "events.db") as journal:
        async with a_task(tmp_path, journal) as (task, _, monitor):
            await monitor.found(task, TaskState(pid=PID, status=Status.CREATED))
            await monitor.reconcile({("default", "one")})
            exited = pack(
                TaskExit(
                    container_id="one", id="one", pid=PID, exit_status=137, exited_at=timestamp(5)
                )
            )
            await Bus(journal).publish("default", "/tasks/exit", exited, first_hand=True)
            if answered:
                await task.deleted(Exit(PID, 0, 0))
            else:
                await monitor.lost(task.key, Exit(PID, 255, 6))
        *_, last = (entry.envelope.event for entry in journal.read(0, 100))
    deleted: Any = last and unpack(last)
    assert (deleted.exit_status, deleted.exited_at.nanos) == ((0, 0) if answered else (137, 5))
