"""Sandboxes, for shims that serve them.

Sources: containerd's ``plugins/sandbox/controller.go`` and ``core/runtime/v2/shim_manager.go``,
which make these calls in this order.
"""

from __future__ import annotations

import signal
from typing import Any, TypeVar

import anyio
import betterproto2

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.registry import Failed, Missing, NotApplicable, Theme
from taskd.check.shim import CALL_SECONDS, Shim, Task, until
from taskd.check.traces import alive
from taskd.codec import decode, encode
from taskd.errors import AlreadyExists, NotFound, TaskdError, Unimplemented
from taskd.proto.containerd.runtime.sandbox import v1 as api
from taskd.proto.containerd.v1.types import Status
from taskd.ttrpc import ConnectionClosed

theme = Theme("sandboxes")

_ABOUT = "sandboxes"
_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
_ID = "s"
_WAIT_SECONDS = 0.3
"""What has not answered by then waits."""

_Answer = TypeVar("_Answer", bound=betterproto2.Message)


class _Sandbox:
    """A sandbox in a shim of its own."""

    def __init__(self, case: Case, shim: Shim) -> None:
        self.case = case
        self.shim = shim

    async def call(
        self, method: str, request: betterproto2.Message, answer: type[_Answer]
    ) -> _Answer:
        """Raises the error that the shim answered, `Missing`, or `Failed` if none came."""
        called = self.case.describe(method, request)
        try:
            payload = await self.shim.connection.call(
                _SERVICE, method, encode(request), timeout=CALL_SECONDS
            )
        except Unimplemented as exc:
            self.case.note(called, f"UNIMPLEMENTED: {exc}")
            raise Missing(_ABOUT if method == "CreateSandbox" else method) from exc
        except ConnectionClosed:
            raise Failed(called, "an answer", "the end of the connection") from None
        except TaskdError as exc:
            self.case.note(called, f"{exc.code.name}: {exc}")
            raise
        found = decode(answer, payload)
        self.case.note(called, self.case.brief(found))
        return found

    async def create(self) -> None:
        request = api.CreateSandboxRequest(sandbox_id=_ID, bundle_path=str(self.shim.bundle.path))
        await self.call("CreateSandbox", request, api.CreateSandboxResponse)

    async def start(self) -> api.StartSandboxResponse:
        request = api.StartSandboxRequest(sandbox_id=_ID)
        return await self.call("StartSandbox", request, api.StartSandboxResponse)

    async def status(self) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id=_ID)
        return await self.call("SandboxStatus", request, api.SandboxStatusResponse)

    async def wait(self) -> api.WaitSandboxResponse:
        request = api.WaitSandboxRequest(sandbox_id=_ID)
        return await self.call("WaitSandbox", request, api.WaitSandboxResponse)

    async def stop(self) -> bool:
        """Whether the shim goes on, as it does but for one."""
        request = api.StopSandboxRequest(sandbox_id=_ID, timeout_secs=10)
        await self.call("StopSandbox", request, api.StopSandboxResponse)
        if not await self.shim.ends(_WAIT_SECONDS):
            return True
        self.case.known(differences.SANDBOX_STOP)
        self.case.orphaned_sockets.add(self.shim.socket)
        return False

    async def shut_down(self) -> None:
        request = api.ShutdownSandboxRequest(sandbox_id=_ID)
        await self.call("ShutdownSandbox", request, api.ShutdownSandboxResponse)
        self.case.true(await self.shim.ends(), "ShutdownSandbox", "the end of the shim", "none")

    async def running(self, id: str) -> Task:  # noqa: A002
        """A container in it: the daemon makes the bundle, and starts no process."""
        bundle = self.case.bundle(id)
        (bundle.path / "sandbox").write_text(_ID)
        task = Task(self.shim, bundle)
        await task.create()
        await task.start()
        return task


async def _started(case: Case) -> _Sandbox:
    bundle = case.bundle(_ID)
    sandbox = _Sandbox(case, await case.start_shim(bundle, max_version="3"))
    await sandbox.create()
    await sandbox.start()
    return sandbox


async def _telling(case: Case) -> _Sandbox:
    """One that tells what becomes of it, as all but containerd 1.7's do."""
    sandbox = await _started(case)
    if not (await sandbox.status()).sandbox_id:
        case.known(differences.SANDBOX_PAUSE)
        await sandbox.stop()
    return sandbox


@theme.check("a life: create, start, status, stop, shutdown", about=_ABOUT)
async def _(case: Case) -> None:
    sandbox = await _started(case)
    ping = api.PingRequest(sandbox_id=_ID)
    await sandbox.call("PingSandbox", ping, api.PingResponse)
    where = api.PlatformRequest(sandbox_id=_ID)
    answer = await sandbox.call("Platform", where, api.PlatformResponse)
    case.equal("Platform: os", "linux", answer.platform.os if answer.platform else "")
    status = await sandbox.status()
    if status.sandbox_id:
        ready = (_ID, "SANDBOX_READY")
        case.equal("SandboxStatus", ready, (status.sandbox_id, status.state))
        case.true(alive(status.pid), "SandboxStatus: pid", "a process", str(status.pid))
    else:
        case.known(differences.SANDBOX_PAUSE)
    if await sandbox.stop():
        case.equal("SandboxStatus: state", "SANDBOX_NOTREADY", (await sandbox.status()).state)
        await sandbox.shut_down()


@theme.check("Metrics", about="SandboxMetrics")
async def _(case: Case) -> None:
    sandbox = await _started(case)
    usage = api.SandboxMetricsRequest(sandbox_id=_ID)
    found = await sandbox.call("SandboxMetrics", usage, api.SandboxMetricsResponse)
    if found.metrics is not None:
        case.equal("SandboxMetrics: id", _ID, found.metrics.id)
    if await sandbox.stop():
        await sandbox.shut_down()


@theme.check("Wait is answered when it stops", about=_ABOUT)
async def _(case: Case) -> None:
    sandbox = await _telling(case)
    if case.differences:
        return
    answers: list[api.WaitSandboxResponse] = []

    async def wait() -> None:
        answers.append(await sandbox.wait())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(_WAIT_SECONDS)
        case.true(not answers, "WaitSandbox", "no answer yet", "one")
        await sandbox.stop()
    case.equal("WaitSandbox: exit status", 0, answers[0].exit_status)
    await sandbox.shut_down()


@theme.check("its containers are in its process, which goes on without them", about=_ABOUT)
async def _(case: Case) -> None:
    sandbox = await _started(case)
    one, two = await sandbox.running("one"), await sandbox.running("two")
    for task in (one, two):
        case.equal("Connect", sandbox.shim.pid, (await task.call("Connect")).shim_pid)
    await one.end()
    await one.call("Shutdown")  # as containerd 2.4 does
    case.equal("State of the other", Status.RUNNING, (await two.state()).status)
    await two.end()
    case.true(not await sandbox.shim.ends(_WAIT_SECONDS), "Delete", "a shim that goes on", "none")
    if (await sandbox.status()).sandbox_id:
        await two.call("Shutdown")
        goes_on = not await sandbox.shim.ends(_WAIT_SECONDS)
        case.true(goes_on, "Shutdown", "a shim that goes on: there is its sandbox", "its end")
    if await sandbox.stop():
        await sandbox.shut_down()


@theme.check("Stop ends its containers, which can be deleted then", about=_ABOUT)
async def _(case: Case) -> None:
    sandbox = await _telling(case)
    if case.differences:
        return
    task = await sandbox.running("one")
    await sandbox.stop()
    case.equal("Wait: exit status", 128 + signal.SIGKILL, await task.wait())
    case.equal("State", Status.STOPPED, (await task.state()).status)
    await task.delete()
    await sandbox.shut_down()


@theme.check("what is not there, and what is there already", about=_ABOUT)
async def _(case: Case) -> None:
    sandbox = await _telling(case)
    if case.differences:
        return

    async def refused(expected: type[TaskdError], method: str, request: Any, answer: Any) -> None:
        try:
            found = await sandbox.call(method, request, answer)
        except expected:
            return
        raise Failed(case.describe(method, request), expected.code.name, case.brief(found))

    for method, request, answer in (
        ("StartSandbox", api.StartSandboxRequest, api.StartSandboxResponse),
        ("StopSandbox", api.StopSandboxRequest, api.StopSandboxResponse),
        ("WaitSandbox", api.WaitSandboxRequest, api.WaitSandboxResponse),
        ("SandboxStatus", api.SandboxStatusRequest, api.SandboxStatusResponse),
        ("ShutdownSandbox", api.ShutdownSandboxRequest, api.ShutdownSandboxResponse),
    ):
        await refused(NotFound, method, request(sandbox_id="other"), answer)
    again = api.CreateSandboxRequest(sandbox_id=_ID, bundle_path=str(sandbox.shim.bundle.path))
    await refused(AlreadyExists, "CreateSandbox", again, api.CreateSandboxResponse)
    await sandbox.stop()
    await sandbox.stop()
    await sandbox.shut_down()


@theme.check("kill -9 of the shim, and delete of the sandbox alone", about=_ABOUT)
async def _(case: Case) -> None:
    """containerd 2.x calls no ``delete`` for the containers."""
    sandbox = await _telling(case)
    if case.differences:
        raise NotApplicable("containerd 1.7 calls delete for each container")
    pids = [(await sandbox.running(name)).pid for name in ("one", "two")]
    await sandbox.shim.kill()
    await case.clean_up(sandbox.shim.bundle)
    for pid in pids:
        gone = await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        case.true(gone, "delete", f"the end of process {pid}", "it runs")
    case.equal("the mounts after delete", [], case.mounts())
