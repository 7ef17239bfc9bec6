"""Starts that nobody waits for any more, and such that come to no end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from shim_puppet import Early, Puppet
from taskd_process.launch import Launch

from taskd.errors import FailedPrecondition, Unknown
from taskd.proto.containerd.events import TaskExecStarted, TaskExit, TaskStart
from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.shim import Ended, Process
from taskd.shim.reaper import Reaper
from taskd.shim.service import TaskService

SECONDS = 10.0


class Slow(Early):
    """Starts when it is let."""

    gate: asyncio.Event

    async def start(self, init: Process) -> int:
        await self.gate.wait()
        return await super().start(init)

    async def exec(self, process: Process) -> int:
        await self.gate.wait()
        return await super().exec(process)


class Told:
    """Takes the place of a publisher."""

    def __init__(self) -> None:
        self.events: list[betterproto2.Message] = []

    def publish(self, event: betterproto2.Message) -> None:
        self.events.append(event)

    async def until(self, kind: type[betterproto2.Message]) -> Any:
        async with asyncio.timeout(SECONDS):
            while not any(isinstance(each, kind) for each in self.events):
                await asyncio.sleep(0.01)
        return next(each for each in self.events if isinstance(each, kind))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def service(tmp_path: Path, told: Told) -> AsyncIterator[TaskService]:
    Slow.gate = asyncio.Event()
    (tmp_path / "config.json").write_text("{}")
    service = TaskService(Slow, "test", Reaper(), told)  # type: ignore[arg-type]
    await service.creation.create(api.CreateTaskRequest(id="one", bundle=str(tmp_path)))
    yield service
    await service.aclose()


async def with_exec(service: TaskService) -> None:
    spec = AnyMessage(value=json.dumps({"args": ["/bin/two"]}).encode())
    await service.exec(api.ExecProcessRequest(id="one", exec_id="two", spec=spec))


@pytest.mark.parametrize("exec_id", ["", "two"])
async def test_a_client_that_gives_up_leaves_a_start_to_its_end(
    service: TaskService, told: Told, exec_id: str
) -> None:
    await with_exec(service)
    request = api.StartRequest(id="one", exec_id=exec_id)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await service.starts.start(request)
    Slow.gate.set()
    event = await told.until(TaskExecStarted if exec_id else TaskStart)
    state = await service.state(api.StateRequest(id="one", exec_id=exec_id))
    assert (state.status, state.pid) == (2, event.pid)
    with pytest.raises(Unknown, match="cannot start a running process"):
        await service.starts.start(request)


async def test_a_start_without_end_is_given_up(
    service: TaskService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.shim.starts.START_SECONDS", 0.1)
    await with_exec(service)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await service.starts.start(api.StartRequest(id="one", exec_id="two"))
    # Nothing holds it any more.
    async with asyncio.timeout(SECONDS):
        await service.creation.delete(api.DeleteRequest(id="one", exec_id="two"))


async def test_an_exec_that_does_not_start_withholds_no_exit(
    service: TaskService, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.shim.task.START_SECONDS", 0.1)
    await with_exec(service)
    starting = asyncio.create_task(service.starts.start(api.StartRequest(id="one", exec_id="two")))
    await asyncio.sleep(0.05)
    [end] = Puppet.ends.values()
    end.set_result(Ended(7, 1))
    assert (await told.until(TaskExit)).exit_status == 7
    with pytest.raises(FailedPrecondition, match="container one init process is not running"):
        await starting


async def test_a_process_whose_release_is_cancelled_does_not_run(
    reaper: Reaper, tmp_path: Path
) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    with reaper.starting():
        spec = {"args": ["/bin/sleep", "1000"], "cwd": "/", "env": []}
        launch = await Launch.prepare(spec, (null,) * 3, terminal=False)
        end = reaper.end(launch.pid)
    releasing = asyncio.create_task(launch.release())
    await asyncio.sleep(0)
    releasing.cancel()
    async with asyncio.timeout(SECONDS):
        assert (await end).status == 137
    with pytest.raises(Unknown, match="has ended"):
        await launch.release()
    os.close(null)
