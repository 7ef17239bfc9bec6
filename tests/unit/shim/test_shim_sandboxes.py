"""Sandboxes of a shim: what authors write, and what the SDK does around it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from shim_puppet import Early, Puppet

from taskd.errors import AlreadyExists, FailedPrecondition, NotFound, Unknown
from taskd.proto.containerd.runtime.sandbox import v1 as api
from taskd.proto.containerd.task import v3 as tasks
from taskd.proto.io.containerd.cgroups.v2 import Metrics
from taskd.shim import Ended, Process, Sandbox, sandboxed
from taskd.shim.command import Call, main
from taskd.shim.reaper import Reaper
from taskd.shim.sandboxes import SandboxService
from taskd.shim.service import TaskService
from taskd.wellknown import nanoseconds

SECONDS = 10.0


class Room(Sandbox):
    calls: ClassVar[list[Any]] = []
    fail: ClassVar[dict[str, Exception]] = {}
    hold: ClassVar[asyncio.Event | None] = None

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.fail:
            raise self.fail[call[0]]

    async def create(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self._note("create", self.wanted.netns, dict(self.wanted.annotations))

    async def start(self) -> int:
        self._note("start")
        return 77

    async def stop(self, seconds: float) -> None:
        self._note("stop", round(seconds))

    async def delete(self) -> None:
        self._note("delete")

    async def stats(self) -> Metrics:
        return Metrics()

    @property
    def info(self) -> dict[str, str]:
        return {"spec": json.dumps(self.spec)}

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        cls.calls.append(("clean up", id, namespace, bundle))


class Guest(Early):
    sandboxes = Room
    hold: ClassVar[asyncio.Event | None] = None

    async def create(self, init: Process) -> int:
        if self.hold is not None:
            await self.hold.wait()
        return await super().create(init)

    async def kill(self, process: Any, signal: int, everyone: bool) -> None:
        await super().kill(process, signal, everyone)
        if "linger" not in self.fail:
            Puppet.ends[process.pid].set_result(Ended(128 + signal, time.time_ns()))

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        Room.calls.append(("clean up container", id))


class Shim:
    """The services of one, called without a socket."""

    def __init__(self, folder: Path) -> None:
        class Nobody:
            @staticmethod
            def publish(event: Any) -> None:
                pass

        self.folder = folder
        reaper = Reaper()
        self.tasks = TaskService(Guest, "ns", reaper, Nobody())  # type: ignore[arg-type]
        self.sandboxes = SandboxService(Room, "ns", reaper, self.tasks)

    def bundle(self, name: str, sandbox: str = "") -> str:
        folder = self.folder / name
        (folder / "rootfs").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if sandbox:
            (folder / "sandbox").write_text(sandbox)
        return str(folder)

    async def create(self, **fields: Any) -> None:
        request = api.CreateSandboxRequest(sandbox_id="s", bundle_path=self.bundle("s"), **fields)
        await self.sandboxes.create(request)

    async def started(self) -> None:
        await self.create()
        await self.sandboxes.start(api.StartSandboxRequest(sandbox_id="s"))

    async def stop(self, seconds: int = 5) -> None:
        await self.sandboxes.stop(api.StopSandboxRequest(sandbox_id="s", timeout_secs=seconds))

    async def shut_down(self) -> None:
        await self.sandboxes.shutdown(api.ShutdownSandboxRequest(sandbox_id="s"))

    async def status(self) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id="s", verbose=True)
        return await self.sandboxes.status(request)

    async def guest(self, name: str, sandbox: str = "s") -> None:
        bundle = self.bundle(name, sandbox)
        await self.tasks.creation.create(tasks.CreateTaskRequest(id=name, bundle=bundle))
        await self.tasks.starts.start(tasks.StartRequest(id=name))


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    made = Shim(tmp_path)
    yield made
    await made.tasks.aclose()
    Room.calls.clear()
    Room.fail.clear()
    Room.hold = Guest.hold = None


async def test_a_life(shim: Shim) -> None:
    await shim.create(netns_path="/net", annotations={"a": "b"})
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    started = await shim.sandboxes.start(api.StartSandboxRequest(sandbox_id="s"))
    assert started.pid == 77
    status = await shim.status()
    assert (status.state, status.pid, status.info) == ("SANDBOX_READY", 77, {"spec": "{}"})
    assert status.exited_at is None
    again = await shim.sandboxes.start(api.StartSandboxRequest(sandbox_id="s"))
    assert again == started
    found = await shim.sandboxes.metrics(api.SandboxMetricsRequest(sandbox_id="s"))
    assert found.metrics is not None
    assert found.metrics.data is not None
    assert found.metrics.data.type_url == "io.containerd.cgroups.v2.Metrics"
    await shim.stop()
    await shim.stop()
    status = await shim.status()
    assert status.state == "SANDBOX_NOTREADY"
    assert nanoseconds(status.exited_at) > nanoseconds(status.created_at)
    assert not shim.tasks.tenants.stopped.is_set()
    await shim.shut_down()
    await asyncio.wait_for(shim.tasks.tenants.stopped.wait(), 5)
    assert Room.calls == [
        ("create", "/net", {"a": "b"}), ("start",), ("stop", 5), ("delete",),
    ]  # fmt: skip


async def test_one_that_cannot_be_made(shim: Shim) -> None:
    Room.fail["create"] = Unknown("no room")
    with pytest.raises(Unknown, match="no room"):
        await shim.create()
    with pytest.raises(NotFound, match="sandbox s: not found"):
        await shim.status()
    # The daemon says so and lets go of the process, which ends.
    with pytest.raises(NotFound):
        await shim.shut_down()
    assert shim.tasks.tenants.stopped.is_set()


async def test_a_client_that_goes_while_it_is_made(shim: Shim) -> None:
    Room.hold = asyncio.Event()
    making = asyncio.create_task(shim.create())
    await asyncio.sleep(0.01)
    with pytest.raises(AlreadyExists):
        await shim.sandboxes.create(api.CreateSandboxRequest(sandbox_id="s"))
    making.cancel()
    await asyncio.sleep(0.01)
    Room.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert [call[0] for call in Room.calls] == ["create", "stop", "delete"]
    assert not shim.tasks.tenants.sandboxes


async def test_it_ends_by_itself(shim: Shim) -> None:
    await shim.started()
    waiting = asyncio.create_task(shim.sandboxes.wait(api.WaitSandboxRequest(sandbox_id="s")))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    shim.tasks.tenants.sandboxes["s"].exited(7)
    async with asyncio.timeout(SECONDS):
        assert (await waiting).exit_status == 7
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    with pytest.raises(FailedPrecondition, match="sandbox s has stopped"):
        await shim.guest("one")
    await shim.shut_down()
    # There was nothing to stop any more.
    assert [call[0] for call in Room.calls] == ["create", "start", "delete"]


async def test_containers_know_theirs_and_end_with_it(shim: Shim) -> None:
    await shim.started()
    await shim.guest("one")
    await shim.guest("two")
    await shim.guest("other", "")
    guests = {name: shim.tasks.tenants.tasks[name].container for name in ("one", "two", "other")}
    assert [each.sandbox is None for each in guests.values()] == [False, False, True]
    await shim.tasks.pause(tasks.PauseRequest(id="two"))
    await shim.stop()
    states = [
        (await shim.tasks.state(tasks.StateRequest(id=name))).status.name or "" for name in guests
    ]
    assert states == ["STOPPED", "STOPPED", "RUNNING"]
    await shim.tasks.creation.delete(tasks.DeleteRequest(id="one"))
    await shim.shut_down()
    # The other one needs the process still.
    assert list(shim.tasks.tenants.tasks) == ["other"]
    assert not shim.tasks.tenants.stopped.is_set()
    await shim.tasks.kill(tasks.KillRequest(id="other", signal=9))
    await shim.tasks.wait(tasks.WaitRequest(id="other"))
    await shim.tasks.creation.delete(tasks.DeleteRequest(id="other"))
    await shim.tasks.shutdown(tasks.ShutdownRequest(id="other"))
    assert shim.tasks.tenants.stopped.is_set()


async def test_a_container_that_does_not_end_in_time(shim: Shim) -> None:
    await shim.started()
    await shim.guest("one")
    Puppet.fail["linger"] = Exception()
    async with asyncio.timeout(SECONDS):
        await shim.stop(1)
    assert (await shim.status()).state == "SANDBOX_NOTREADY"
    assert Room.calls[-1] == ("stop", 0)
    Puppet.ends[shim.tasks.tenants.tasks["one"].init.pid].set_result(Ended(9, 1))


async def test_a_container_that_is_made_while_it_stops(shim: Shim) -> None:
    await shim.started()
    Guest.hold = asyncio.Event()
    making = asyncio.create_task(shim.guest("one"))
    await asyncio.sleep(0.01)
    await shim.stop()
    Guest.hold.set()
    with pytest.raises(FailedPrecondition, match="sandbox s has stopped"):
        await making
    assert ("abandon",) in Puppet.calls
    await shim.shut_down()
    await asyncio.wait_for(shim.tasks.tenants.stopped.wait(), 5)


async def test_task_shutdown_leaves_a_process_that_has_a_sandbox(shim: Shim) -> None:
    await shim.started()
    await shim.tasks.shutdown(tasks.ShutdownRequest(id="one"))
    assert not shim.tasks.tenants.stopped.is_set()


async def test_delete_cleans_up_after_a_killed_shim(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shim.started()
    await shim.guest("one")
    await shim.guest("gone")
    # Under the name of one that is gone somebody else's has come.
    (shim.folder / "gone/sandbox").unlink()
    sandbox = shim.folder / "s"
    assert sandboxed.containers(sandbox) == [shim.folder / "one"]
    monkeypatch.chdir(sandbox)
    Room.calls.clear()
    arguments = ["-namespace", "ns", "-id", "s", "-address", "/a", "-bundle", str(sandbox)]
    answers: list[bytes] = []
    call = Call([*arguments, "delete"], lambda: b"", answers.append, forks=True)
    assert main(Guest, "io.example.guest.v1", call) == 0
    assert tasks.DeleteResponse.parse(answers[0]).exit_status == 137
    assert Room.calls == [("clean up container", "one"), ("clean up", "s", "ns", sandbox)]
