"""The shim's task service, version 2 and 3, in the domain's terms.

The two versions differ in the service's name alone: their messages are the same on the wire.
Source: containerd's ``core/runtime/v2/bridge.go``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import anyio
import betterproto2

from taskd.codec import MalformedMessage, decode, encode
from taskd.errors import NotFound, TaskdError, Unimplemented, Unknown
from taskd.proto.containerd.task import v2 as api
from taskd.proto.containerd.types import Mount as MountMessage
from taskd.runtime import binary
from taskd.runtime.binary import Daemon, ShimBinary
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Generation
from taskd.runtime.request import Forms, is_own
from taskd.runtime.types import CreateOptions, Exit, ProcessInfo, Status, Stdio, TaskState
from taskd.runtime.warm import Warm
from taskd.ttrpc import ConnectionClosed
from taskd.types import Mount, TypedValue
from taskd.wellknown import from_any, nanoseconds, to_any

__all__ = ["TaskClient", "generation", "mount_messages", "read_answer", "status_of", "time_left"]

_SERVICES = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}
_Response = TypeVar("_Response", bound=betterproto2.Message)


def generation(daemon: Daemon, warm: Warm | None) -> Generation:
    """Shims of today; `warm` starts those in Python."""
    forms = Forms()
    return Generation(
        resolve=binary.resolve,
        binary=lambda path, bundle: ShimBinary(path, bundle, daemon, warm, forms),
        task=lambda connection, bundle, bootstrap: TaskClient(
            connection, bundle.id, bootstrap.version
        ),
        socket=lambda bundle: binary.usual_socket(daemon.address, bundle),
        pools=is_own,
        version=binary.version,
    )


class TaskClient:
    """One task of one shim. An empty `exec_id` means the init process.

    Every call raises the error that the shim answered, `DeadlineExceeded` when the caller's
    deadline (the innermost cancel scope's) is over, or `ttrpc.ConnectionClosed`.
    """

    tells_oom = True

    def __init__(self, connection: Connection, task_id: str, version: int) -> None:
        if version not in _SERVICES:
            raise Unimplemented(f"task API version {version}")
        self._connection = connection
        self._service = _SERVICES[version]
        self._id = task_id

    async def create(self, bundle: str, options: CreateOptions) -> int:
        """Make the container; returns the pid of its init process."""
        stdio = options.stdio
        request = api.CreateTaskRequest(
            id=self._id,
            bundle=bundle,
            rootfs=mount_messages(options.rootfs),
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=options.checkpoint,
            options=to_any(options.options),
        )
        try:
            return (await self._call("Create", request, api.CreateTaskResponse)).pid
        except TaskdError as exc:
            raise exc.within("failed to create shim task") from exc

    async def start(self, exec_id: str) -> int:
        """Start a created process; returns its pid."""
        request = api.StartRequest(id=self._id, exec_id=exec_id)
        return (await self._call("Start", request, api.StartResponse)).pid

    async def state(self, exec_id: str, *, timeout: float | None = None) -> TaskState:
        request = api.StateRequest(id=self._id, exec_id=exec_id)
        answer = await self._call("State", request, api.StateResponse, timeout=timeout)
        return TaskState(
            pid=answer.pid,
            status=status_of(answer.status),
            stdio=Stdio(answer.stdin, answer.stdout, answer.stderr, answer.terminal),
            exit_status=answer.exit_status,
            exited_at=nanoseconds(answer.exited_at),
        )

    async def delete(self, exec_id: str) -> Exit:
        """Remove a process that has exited."""
        request = api.DeleteRequest(id=self._id, exec_id=exec_id)
        answer = await self._call("Delete", request, api.DeleteResponse)
        return Exit(answer.pid, answer.exit_status, nanoseconds(answer.exited_at))

    async def delete_task(self) -> Exit:
        """The same for the init process, in the words of a call that deletes the task."""
        try:
            return await self.delete("")
        except (NotFound, ConnectionClosed):
            raise
        except TaskdError as exc:
            raise exc.within("failed to delete task") from exc

    async def exec(self, exec_id: str, spec: TypedValue | None, stdio: Stdio) -> None:
        """Add a process to the task; `spec` is an OCI process as JSON."""
        request = api.ExecProcessRequest(
            id=self._id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=to_any(spec),
        )
        await self._command("Exec", request)

    async def wait(self, exec_id: str) -> Exit:
        """Wait for a process to exit, however long; the exit's pid is not known here (0)."""
        request = api.WaitRequest(id=self._id, exec_id=exec_id)
        answer = await self._call("Wait", request, api.WaitResponse)
        return Exit(0, answer.exit_status, nanoseconds(answer.exited_at))

    async def kill(self, exec_id: str, signal: int, everyone: bool) -> None:
        request = api.KillRequest(id=self._id, exec_id=exec_id, signal=signal, all=everyone)
        await self._command("Kill", request)

    async def pause(self) -> None:
        await self._command("Pause", api.PauseRequest(id=self._id))

    async def resume(self) -> None:
        await self._command("Resume", api.ResumeRequest(id=self._id))

    async def pids(self) -> list[ProcessInfo]:
        answer = await self._call("Pids", api.PidsRequest(id=self._id), api.PidsResponse)
        return [ProcessInfo(process.pid, from_any(process.info)) for process in answer.processes]

    async def resize_pty(self, exec_id: str, width: int, height: int) -> None:
        request = api.ResizePtyRequest(id=self._id, exec_id=exec_id, width=width, height=height)
        await self._command("ResizePty", request)

    async def close_stdin(self, exec_id: str) -> None:
        request = api.CloseIoRequest(id=self._id, exec_id=exec_id, stdin=True)
        await self._command("CloseIO", request)

    async def update(self, resources: TypedValue | None, annotations: Mapping[str, str]) -> None:
        request = api.UpdateTaskRequest(
            id=self._id, resources=to_any(resources), annotations=dict(annotations)
        )
        await self._command("Update", request)

    async def stats(self, *, timeout: float) -> TypedValue | None:
        request = api.StatsRequest(id=self._id)
        answer = await self._call("Stats", request, api.StatsResponse, timeout=timeout)
        return from_any(answer.stats)

    async def checkpoint(self, path: str, options: TypedValue | None) -> None:
        request = api.CheckpointTaskRequest(id=self._id, path=path, options=to_any(options))
        await self._command("Checkpoint", request)

    async def connect(self) -> int:
        """Pid of the shim's own process."""
        request = api.ConnectRequest(id=self._id)
        return (await self._call("Connect", request, api.ConnectResponse)).shim_pid

    async def shutdown(self) -> None:
        """Ask the shim to end; one that has other containers goes on."""
        await self._command("Shutdown", api.ShutdownRequest(id=self._id))

    async def _command(self, method: str, request: betterproto2.Message) -> None:
        await self._connection.call(self._service, method, encode(request), timeout=time_left())

    async def _call(
        self,
        method: str,
        request: betterproto2.Message,
        response_type: type[_Response],
        *,
        timeout: float | None = None,
    ) -> _Response:
        answer = await self._connection.call(
            self._service,
            method,
            encode(request),
            timeout=time_left() if timeout is None else timeout,
        )
        return read_answer(response_type, answer)


def read_answer(response_type: type[_Response], answer: bytes) -> _Response:
    """What a shim has answered. Raises `Unknown` if that is no such message: nobody asked badly."""
    try:
        return decode(response_type, answer)
    except MalformedMessage as exc:
        raise Unknown(f"the shim answers no {response_type.__name__}: {exc.reason}") from None


def time_left() -> float | None:
    """Seconds that the caller's cancel scopes leave for a call."""
    deadline = anyio.current_effective_deadline()
    if deadline == math.inf:
        return None
    return max(deadline - anyio.current_time(), 0.0)


def mount_messages(mounts: Iterable[Mount]) -> list[MountMessage]:
    return [
        MountMessage(
            type=mount.type, source=mount.source, target=mount.target, options=list(mount.options)
        )
        for mount in mounts
    ]


def status_of(number: int) -> Status:
    """A status as shims have it; `Status.UNKNOWN` for one that we do not know."""
    try:
        return Status(number)
    except ValueError:
        return Status.UNKNOWN
