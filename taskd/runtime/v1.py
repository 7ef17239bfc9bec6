"""Runtime v1, ``io.containerd.runtime.v1.linux``: one ``containerd-shim`` for each container.

Deprecated in containerd 1.4 and gone in 2.0, but tasks that run under it must go on. Its shim is
given a socket to listen on instead of making one, does not publish the events that it does not
cause, and is ended by SIGKILL.

Sources: containerd 1.6's ``runtime/v1/linux/runtime.go``, ``task.go``, ``process.go``, and
``runtime/v1/shim/client/client.go``.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import anyio
import betterproto2
from anyio import to_thread

from taskd import cgroups, shim_sockets
from taskd.codec import decode, encode
from taskd.errors import NotFound, Unimplemented, Unknown, words
from taskd.mounts import unmount_all
from taskd.proto.containerd import events
from taskd.proto.containerd.linux.runc import RuncOptions
from taskd.proto.containerd.runtime.linux.shim import v1 as api
from taskd.proto.google.protobuf import Empty
from taskd.runtime import spawn
from taskd.runtime.binary import Bootstrap, Daemon, resolve_program, usual_socket
from taskd.runtime.bundle import Bundle
from taskd.runtime.client import mount_messages, read_answer, status_of, time_left
from taskd.runtime.connection import Connection
from taskd.runtime.generation import V1_RUNTIME, Generation
from taskd.runtime.held import HeldProcess
from taskd.runtime.types import CreateOptions, Exit, ProcessInfo, Stdio, TaskState
from taskd.types import TypedValue
from taskd.wellknown import from_any, nanoseconds, pack, to_any

__all__ = ["LinuxBinary", "LinuxTaskClient", "Publish", "generation"]

_SERVICE = "containerd.runtime.linux.shim.v1.Shim"
_SHIM = "containerd-shim"
_RUNC = "runc"
_RUNC_ROOT = Path("/run/containerd/runc")
_KILL_SECONDS = 5.0

Publish = Callable[[str, str, TypedValue], Awaitable[None]]
"""Publishes an event: namespace, topic, event."""
_Response = TypeVar("_Response", bound=betterproto2.Message)


def generation(daemon: Daemon, publish: Publish) -> Generation:
    return Generation(
        resolve=lambda _: resolve_program(V1_RUNTIME, _SHIM),
        binary=lambda path, bundle: LinuxBinary(path, bundle, daemon),
        task=lambda connection, bundle, bootstrap: LinuxTaskClient(
            connection, bundle, bootstrap, publish
        ),
        socket=lambda bundle: usual_socket(daemon.address, bundle),
    )


@dataclass(frozen=True, slots=True)
class LinuxBinary:
    """The shim's executable, called for one bundle."""

    path: Path
    bundle: Bundle
    daemon: Daemon

    deletes_after_shutdown: ClassVar[bool] = False

    async def features(self, options: TypedValue | None) -> TypedValue | None:
        return None

    async def adopt(self, bundles: Iterable[Bundle], group: str = "") -> Bootstrap:
        raise Unimplemented("adopt")

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        """Start a shim on a socket made for it. Raises `Unknown`, `InvalidArgument`."""
        runc = _runc_options(options.runtime_options)
        try:
            listener, address = await to_thread.run_sync(self._listen)
        except OSError as exc:
            raise Unknown(f"the shim's socket: {words(exc)}") from exc
        with listener:
            flags = [
                *("-namespace", self.bundle.namespace),
                *("-workdir", str((self.bundle.path / "work").readlink())),
                *("-address", self.daemon.address),
                *("-containerd-binary", self.daemon.publish_binary),
                *(("-runtime-root", runc.runtime_root) if runc.runtime_root else ()),
                *(("-systemd-cgroup",) if runc.systemd_cgroup else ()),
                *(("-debug",) if self.daemon.debug else ()),
            ]
            try:
                pid = spawn.detach(
                    [str(self.path), *flags],
                    cwd=self.bundle.path,
                    env=os.environ | {"GOMAXPROCS": "2"},
                    output=self.bundle.log,
                    descriptor=listener.fileno(),
                )
            except OSError as exc:
                raise Unknown(f"fork/exec {self.path}: {exc.strerror}") from exc
        (self.bundle.path / "shim.pid").write_text(str(pid))
        (self.bundle.path / "runc").write_text(f"{runc.runtime or _RUNC}\n{runc.runtime_root}")
        return Bootstrap(address, "ttrpc", 1)

    async def delete(self) -> Exit:
        """Kill and remove a container whose shim has died; its exit is that of SIGKILL."""
        pid = _read_number(self.bundle.path / "init.pid")
        runc, root = _RUNC, ""
        with suppress(OSError, ValueError):
            runc, root = (self.bundle.path / "runc").read_text().split("\n")
        state = Path(root or _RUNC_ROOT) / self.bundle.namespace
        command = [runc, "--root", str(state), "delete", "--force", self.bundle.id]
        try:
            done = await spawn.run(command, cwd=self.bundle.path, env=os.environ)
        except OSError as exc:
            raise Unknown(f"fork/exec {runc}: {(exc.strerror or str(exc)).lower()}") from exc
        finally:
            await to_thread.run_sync(unmount_all, self.bundle.rootfs)
        if done.returncode:
            raise Unknown(done.stderr.decode(errors="replace").strip())
        return Exit(pid, 128 + signal.SIGKILL, time.time_ns())

    def _listen(self) -> tuple[socket.socket, str]:
        path = usual_socket(self.daemon.address, self.bundle)
        shim_sockets.make(path.parent)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener, f"unix://{path}"


class LinuxTaskClient:
    """One task of one shim: see `taskd.runtime.client.TaskClient`, whose counterpart this is.

    What a newer shim publishes by itself, beside the steps of a process's life, is published here.
    """

    tells_oom = False

    def __init__(
        self, connection: Connection, bundle: Bundle, bootstrap: Bootstrap, publish: Publish
    ) -> None:
        self._connection = connection
        self._socket = Path(bootstrap.address.removeprefix("unix://"))
        self._bundle = bundle
        self._id = bundle.id
        self._publish_event = publish
        self._pid = 0

    async def create(self, bundle: str, options: CreateOptions) -> int:
        stdio = options.stdio
        rootfs = mount_messages(options.rootfs)
        request = api.CreateTaskRequest(
            id=self._id,
            bundle=bundle,
            runtime=_runc_options(options.runtime_options).runtime or _RUNC,
            rootfs=rootfs,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            checkpoint=options.checkpoint,
            options=to_any(options.task_options),
        )
        self._pid = (await self._call("Create", request, api.CreateTaskResponse)).pid
        return self._pid

    async def start(self, exec_id: str) -> int:
        request = api.StartRequest(id=exec_id or self._id)
        pid = (await self._call("Start", request, api.StartResponse)).pid
        if not exec_id:
            self._pid = pid
        return pid

    async def state(self, exec_id: str, *, timeout: float | None = None) -> TaskState:
        request = api.StateRequest(id=exec_id or self._id)
        answer = await self._call("State", request, api.StateResponse, timeout=timeout)
        if not exec_id:
            self._pid = answer.pid
        return TaskState(
            pid=answer.pid,
            status=status_of(answer.status),
            stdio=Stdio(answer.stdin, answer.stdout, answer.stderr, answer.terminal),
            exit_status=answer.exit_status,
            exited_at=nanoseconds(answer.exited_at),
        )

    async def delete(self, exec_id: str) -> Exit:
        if exec_id:
            request = api.DeleteProcessRequest(id=exec_id)
            answer = await self._call("DeleteProcess", request, api.DeleteResponse)
        else:
            answer = await self._call("Delete", Empty(), api.DeleteResponse)
        return Exit(answer.pid, answer.exit_status, nanoseconds(answer.exited_at))

    async def delete_task(self) -> Exit:
        return await self.delete("")

    async def exec(self, exec_id: str, spec: TypedValue | None, stdio: Stdio) -> None:
        request = api.ExecProcessRequest(
            id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=to_any(spec),
        )
        await self._call("Exec", request, Empty)

    async def wait(self, exec_id: str) -> Exit:
        answer = await self._call("Wait", api.WaitRequest(id=exec_id or self._id), api.WaitResponse)
        return Exit(0, answer.exit_status, nanoseconds(answer.exited_at))

    async def kill(self, exec_id: str, signal: int, everyone: bool) -> None:
        request = api.KillRequest(id=exec_id or self._id, signal=signal, all=everyone)
        await self._call("Kill", request, Empty)

    async def pause(self) -> None:
        await self._call("Pause", Empty(), Empty)
        await self._publish("/tasks/paused", events.TaskPaused(container_id=self._id))

    async def resume(self) -> None:
        await self._call("Resume", Empty(), Empty)
        await self._publish("/tasks/resumed", events.TaskResumed(container_id=self._id))

    async def pids(self) -> list[ProcessInfo]:
        answer = await self._call(
            "ListPids", api.ListPidsRequest(id=self._id), api.ListPidsResponse
        )
        return [ProcessInfo(process.pid, from_any(process.info)) for process in answer.processes]

    async def resize_pty(self, exec_id: str, width: int, height: int) -> None:
        request = api.ResizePtyRequest(id=exec_id or self._id, width=width, height=height)
        await self._call("ResizePty", request, Empty)

    async def close_stdin(self, exec_id: str) -> None:
        await self._call("CloseIO", api.CloseIoRequest(id=exec_id or self._id, stdin=True), Empty)

    async def update(self, resources: TypedValue | None, annotations: Mapping[str, str]) -> None:
        await self._call("Update", api.UpdateTaskRequest(resources=to_any(resources)), Empty)

    async def stats(self, *, timeout: float) -> TypedValue | None:
        """Usage of the cgroup, which here the daemon reads itself, whatever the time it takes.

        Raises `NotFound`.
        """
        try:
            return pack((await to_thread.run_sync(cgroups.of, self._pid)).stats())
        except OSError:
            raise NotFound("cgroup does not exist") from None

    async def checkpoint(self, path: str, options: TypedValue | None) -> None:
        request = api.CheckpointTaskRequest(path=path, options=to_any(options))
        await self._call("Checkpoint", request, Empty)
        await self._publish("/tasks/checkpointed", events.TaskCheckpointed(container_id=self._id))

    async def connect(self) -> int:
        return (await self._call("ShimInfo", Empty(), api.ShimInfoResponse)).shim_pid

    async def shutdown(self) -> None:
        """Kill the shim, as containerd does, and see it gone with the socket made for it."""
        pid = await self.connect()
        with suppress(ProcessLookupError):
            process = HeldProcess(pid)
            try:
                await process.kill(_KILL_SECONDS)
            finally:
                process.release()
        with anyio.move_on_after(_KILL_SECONDS):
            await self._connection.wait_closed()
        self._socket.unlink(missing_ok=True)

    async def _publish(self, topic: str, event: betterproto2.Message) -> None:
        await self._publish_event(self._bundle.namespace, topic, pack(event))

    async def _call(
        self,
        method: str,
        request: betterproto2.Message,
        response_type: type[_Response],
        *,
        timeout: float | None = None,
    ) -> _Response:
        answer = await self._connection.call(
            _SERVICE, method, encode(request), timeout=time_left() if timeout is None else timeout
        )
        return read_answer(response_type, answer)


def _runc_options(options: TypedValue | None) -> RuncOptions:
    if options is None:
        return RuncOptions()
    if options.type_url.rpartition("/")[2] != "containerd.linux.runc.RuncOptions":
        raise Unknown("invalid runtime options format")
    return decode(RuncOptions, options.value)


def _read_number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
