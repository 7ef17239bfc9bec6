"""A shim that runs, and one container of it, as a daemon sees them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import betterproto2

from taskd.check import container, traces
from taskd.check.programs import SLEEP, Program
from taskd.check.registry import Difference, Failed, Missing
from taskd.codec import MalformedMessage, decode, encode
from taskd.errors import Code, DeadlineExceeded, TaskdError, Unimplemented
from taskd.proto.containerd.task import v2 as api
from taskd.proto.google.protobuf import Empty
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.ttrpc import ConnectionClosed

if TYPE_CHECKING:
    from taskd.check.case import Case

__all__ = ["CALL_SECONDS", "METHODS", "OPTIONAL", "Shim", "Task", "default_stderr", "until"]

CALL_SECONDS = 15.0
"""That a call may take."""

METHODS: Mapping[str, tuple[Callable[..., betterproto2.Message], type[betterproto2.Message]]] = {
    "Create": (api.CreateTaskRequest, api.CreateTaskResponse),
    "Start": (api.StartRequest, api.StartResponse),
    "State": (api.StateRequest, api.StateResponse),
    "Wait": (api.WaitRequest, api.WaitResponse),
    "Kill": (api.KillRequest, Empty),
    "Delete": (api.DeleteRequest, api.DeleteResponse),
    "Exec": (api.ExecProcessRequest, Empty),
    "Pids": (api.PidsRequest, api.PidsResponse),
    "Pause": (api.PauseRequest, Empty),
    "Resume": (api.ResumeRequest, Empty),
    "ResizePty": (api.ResizePtyRequest, Empty),
    "CloseIO": (api.CloseIoRequest, Empty),
    "Update": (api.UpdateTaskRequest, Empty),
    "Stats": (api.StatsRequest, api.StatsResponse),
    "Checkpoint": (api.CheckpointTaskRequest, Empty),
    "Connect": (api.ConnectRequest, api.ConnectResponse),
    "Shutdown": (api.ShutdownRequest, Empty),
}

OPTIONAL = frozenset(
    ("Exec", "Pids", "Pause", "Resume", "ResizePty", "CloseIO", "Update", "Stats", "Checkpoint")
)
"""What a shim may answer UNIMPLEMENTED to."""


class Shim:
    """A shim's process, which serves at an address."""

    def __init__(self, case: Case, bundle: Bundle, bootstrap: Bootstrap, connection: Connection):
        self.case = case
        self.bundle = bundle
        """The first container's."""
        self.bootstrap = bootstrap
        self.connection = connection
        self.pid = 0
        """As it says itself."""
        self.containers: set[str] = set()
        """Ids of those that were created and not deleted."""

    @property
    def service(self) -> str:
        return f"containerd.task.v{self.bootstrap.version}.Task"

    @property
    def socket(self) -> str:
        return self.bootstrap.address.removeprefix("unix://")

    @property
    def has_socket(self) -> bool:
        return Path(self.socket).exists()

    @property
    def alive(self) -> bool:
        return traces.alive(self.pid)

    async def call(
        self,
        method: str,
        request: betterproto2.Message,
        *,
        timeout: float = CALL_SECONDS,
        connection: Connection | None = None,
    ) -> Any:
        """Call a method of the task service; the answer.

        Raises the error that the shim answered, `Missing`, or `Failed` if no answer came.
        """
        called = self.case.describe(method, request)
        try:
            payload = await (connection or self.connection).call(
                self.service, method, encode(request), timeout=timeout
            )
            answer = decode(METHODS[method][1], payload)
        except DeadlineExceeded:
            self.case.note(called, f"nothing within {timeout:g} s")
            raise Failed(called, "an answer", f"none within {timeout:g} s") from None
        except ConnectionClosed:
            self.case.note(called, "the connection was closed")
            raise Failed(called, "an answer", "the end of the connection") from None
        except MalformedMessage as exc:
            self.case.note(called, f"what is no {METHODS[method][1].__name__}")
            raise Failed(called, "an answer", f"a malformed message ({exc})") from exc
        except TaskdError as exc:
            self.case.note(called, f"{exc.code.name}: {exc}")
            if isinstance(exc, Unimplemented) and method in OPTIONAL:
                raise Missing(method) from exc
            raise
        self.case.note(called, self.case.brief(answer))
        return answer

    async def shut_down(self) -> None:
        """Ask it to end. A shim may hang up before it answers."""
        request = api.ShutdownRequest(id=self.bundle.id)
        called = self.case.describe("Shutdown", request)
        try:
            await self.connection.call(
                self.service, "Shutdown", encode(request), timeout=CALL_SECONDS
            )
        except ConnectionClosed:
            self.case.note(called, "the connection was closed")
        else:
            self.case.note(called, "OK")

    async def ends(self, seconds: float = CALL_SECONDS) -> bool:
        """Whether its process ends within that time."""
        return await until(lambda: not self.alive, seconds)

    async def has_panicked(self) -> bool:
        """Whether its process ends now, as one in Go does that cannot go on."""
        # Its last words may be on their way when it has ended.
        if await self.ends(1) and await until(lambda: "panic: " in self.case.whole_log(), 1):
            self.case.orphaned_sockets.add(self.socket)
            return True
        return False

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.case.note(f"kill -9 {self.pid} (the shim)", "")
        self.case.kill(self.pid, signal.SIGKILL)
        self.case.orphaned_sockets.add(self.socket)
        if not await self.ends():
            raise Failed("kill -9 of the shim", "its end", "none")


class Task:
    """One container of a shim. An empty `exec_id` means its own process."""

    def __init__(self, shim: Shim, bundle: Bundle) -> None:
        self.shim = shim
        self.bundle = bundle
        self.id = bundle.id
        self.case = shim.case
        self.pid = 0

    async def call(
        self,
        method: str,
        *,
        timeout: float = CALL_SECONDS,
        connection: Connection | None = None,
        **fields: Any,
    ) -> Any:
        """Call a method about this container: see `Shim.call`."""
        request = METHODS[method][0](id=self.id, **fields)
        answer = await self.shim.call(method, request, timeout=timeout, connection=connection)
        if method == "Create":
            self.shim.containers.add(self.id)
            self.case.had_container.add(self.id)
        elif method == "Delete" and not fields.get("exec_id"):
            self.shim.containers.discard(self.id)
        return answer

    async def refused(
        self,
        method: str,
        *codes: Code,
        known: Mapping[Code, Difference] | None = None,
        **fields: Any,
    ) -> None:
        """Make a call that has to be refused with one of `codes`, or what is `known` to come."""
        called = self.case.describe(method, METHODS[method][0](id=self.id, **fields))
        code, came = Code.OK, ""
        try:
            came = self.case.brief(await self.call(method, **fields))
        except TaskdError as exc:
            code, came = exc.code, f"{exc.code.name}: {exc}"
        if code in codes:
            return
        if known and code in known:
            self.case.known(known[code])
            return
        expected = " or ".join(each.name for each in codes)
        raise Failed(called, expected, came if code else f"OK ({came})")

    async def at_once(self, method: str, times: int, **fields: Any) -> list[Code]:
        """Make a call several times at once; the statuses of the answers, in order."""
        codes: list[Code] = []

        async def one() -> None:
            try:
                await self.call(method, **fields)
            except TaskdError as exc:
                codes.append(exc.code)
            else:
                codes.append(Code.OK)

        async with anyio.create_task_group() as group:
            for _ in range(times):
                group.start_soon(one)
        return sorted(codes)

    async def fails(self, method: str, **fields: Any) -> TaskdError:
        """Make a call that has to be refused, whatever the status; the error."""
        try:
            answer = await self.call(method, **fields)
        except TaskdError as exc:
            return exc
        called = self.case.describe(method, METHODS[method][0](id=self.id, **fields))
        raise Failed(called, "an error", f"OK ({self.case.brief(answer)})")

    async def create(
        self,
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> int:
        answer = await self.call(
            "Create",
            bundle=str(self.bundle.path),
            rootfs=container.rootfs_mounts(self.case.subject.rootfs),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            options=self.case.subject.any_options,
        )
        self.pid = answer.pid
        return self.pid

    async def start(self, exec_id: str = "") -> int:
        pid: int = (await self.call("Start", exec_id=exec_id)).pid
        if not exec_id:
            self.pid = pid
        return pid

    async def state(
        self, exec_id: str = "", *, connection: Connection | None = None
    ) -> api.StateResponse:
        answer: api.StateResponse = await self.call("State", exec_id=exec_id, connection=connection)
        return answer

    async def exec(
        self,
        exec_id: str,
        command: Program | Sequence[str] = SLEEP,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        terminal: bool = False,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
    ) -> None:
        """Add an exec."""
        document = container.process(
            self.case.subject.command(command),
            self.case.namespace,
            terminal=terminal,
            env=env,
            cwd=cwd,
        )
        await self.call(
            "Exec",
            exec_id=exec_id,
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr or default_stderr(stdout, terminal),
            spec=container.process_any(document),
        )

    async def kill(self, number: int = signal.SIGKILL, exec_id: str = "", **fields: Any) -> None:
        await self.call("Kill", signal=int(number), exec_id=exec_id, **fields)

    async def wait(self, exec_id: str = "", *, timeout: float = CALL_SECONDS) -> int:
        """The exit status."""
        status: int = (await self.call("Wait", exec_id=exec_id, timeout=timeout)).exit_status
        return status

    async def delete(self, exec_id: str = "") -> api.DeleteResponse:
        answer: api.DeleteResponse = await self.call("Delete", exec_id=exec_id)
        return answer

    async def end(self) -> None:
        """Kill it, wait, and delete it."""
        await self.kill()
        await self.wait()
        await self.delete()


def default_stderr(stdout: str, terminal: bool) -> str:
    """Where the standard error goes if that does not matter: containerd's shims want both."""
    return "" if terminal else stdout


async def until(
    condition: Callable[[], bool], seconds: float = CALL_SECONDS, *, every: float = 0.02
) -> bool:
    """Whether something becomes true within that time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(every)
    return True
