"""A daemon for the length of a test, and containers in it. Needs no root, unless the runtime does.

    async with daemon() as taskd:
        async with taskd.container("io.taskd.process.v1", ["/bin/echo", "hello"]) as container:
            assert await container.run() == 0
            assert container.output == b"hello\\n"

When a context ends, what was in it is killed, deleted and removed. For fixtures use anyio's plugin
for pytest, as ``taskd shim new`` shows: one of pytest-asyncio's ends in another task than it began.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from grpclib.exceptions import GRPCError

from taskd.config import Config
from taskd.daemon import running
from taskd.grpc.channel import Channel
from taskd.proto.containerd.services.containers.v1 import Container as Record
from taskd.proto.containerd.services.containers.v1 import (
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any as AnyMessage

__all__ = ["Container", "Daemon", "Process", "daemon"]

END_SECONDS = 20.0
"""For a container to be killed and deleted in the end; then that is a TimeoutError."""

_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/"


@asynccontextmanager
async def daemon(namespace: str = "testing") -> AsyncIterator[Daemon]:
    """A taskd in this process, on a temporary folder, and a client that speaks in `namespace`."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as name:
        folder = Path(name)
        config = Config(root=folder / "root", state=folder / "state")

        async with (
            running(config),
            Channel(config.socket, namespace=namespace) as channel,
        ):
            yield Daemon(folder, config.socket, channel)


class Daemon:
    """A daemon that serves; `channel` is for whatever else its API has."""

    def __init__(self, folder: Path, socket: Path, channel: Channel) -> None:
        self.folder = folder
        """Temporary: what is in it goes with the daemon."""
        self.socket = socket
        """Where gRPC is served."""
        self.channel = channel
        self.tasks = TasksStub(channel)

    @asynccontextmanager
    async def container(
        self,
        runtime: str,
        args: Sequence[str],
        *,
        id: str = "test",  # noqa: A002
        rootfs: Path | None = None,
        env: Sequence[str] = (f"PATH={os.defpath}",),
        spec: Mapping[str, Any] | None = None,
        options: AnyMessage | None = None,
    ) -> AsyncIterator[Container]:
        """A container that is created, but not started.

        `runtime` is a name (``io.example.thing.v1``) or the path of a shim's executable. `rootfs`
        is an empty folder by default; `spec` says more about the container, in the terms of the OCI
        runtime specification, and `options` is what the runtime takes beside it. Raises GRPCError
        with the shim's own words if it refuses.
        """
        if rootfs is None:
            rootfs = self.folder / "rootfs"
            rootfs.mkdir(exist_ok=True)
        document = {
            "ociVersion": "1.0.2",
            "process": _process(args, env),
            "root": {"path": str(rootfs)},
            **(spec or {}),
        }
        records = ContainersStub(self.channel)
        record = Record(
            id=id, runtime=ContainerRuntime(name=runtime), spec=_packed("Spec", document)
        )
        await records.create(CreateContainerRequest(container=record))
        try:
            async with _created(self, id, env, options) as container:
                yield container
        finally:
            with anyio.CancelScope(shield=True):
                await records.delete(DeleteContainerRequest(id=id))


@asynccontextmanager
async def _created(
    daemon: Daemon,
    id: str,  # noqa: A002
    env: Sequence[str],
    options: AnyMessage | None,
) -> AsyncIterator[Container]:
    with tempfile.TemporaryDirectory(dir=daemon.folder) as folder, ExitStack() as stack:
        container = Container(daemon.tasks, id, "", Path(folder), stack)
        container.env = env
        created = await daemon.tasks.create(
            CreateTaskRequest(
                container_id=id,
                stdout=str(container.stdout.path),
                stderr=str(container.stderr.path),
                options=options,
            )
        )
        container.pid = created.pid
        try:
            yield container
        finally:
            with anyio.fail_after(END_SECONDS, shield=True):
                with suppress(GRPCError):  # it has ended already, or has not begun
                    await container.kill()
                    await container.wait()
                await daemon.tasks.delete(DeleteTaskRequest(container_id=id))


class _Output:
    """Takes what is written to a FIFO of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken = bytearray()
        os.mkfifo(path)
        # With both ends open it has no end, and does not wait for anybody.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fd, self.take)

    def take(self) -> bytes:
        """All that has been written."""
        with suppress(BlockingIOError):
            while True:
                self._taken += os.read(self._fd, 65536)
        return bytes(self._taken)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


class Process:
    """A process in a container: its own, or an exec."""

    def __init__(
        self, tasks: TasksStub, container_id: str, exec_id: str, folder: Path, stack: ExitStack
    ) -> None:
        self.pid = 0
        """0 as long as there is none."""
        self._tasks = tasks
        self._ids = {"container_id": container_id, "exec_id": exec_id}
        self._folder = folder
        self._stack = stack
        self.stdout = _Output(folder / f"{exec_id}.stdout")
        stack.callback(self.stdout.close)
        self.stderr = _Output(folder / f"{exec_id}.stderr")
        stack.callback(self.stderr.close)

    async def start(self) -> int:
        """Its pid. Raises GRPCError, like all that follows."""
        self.pid = (await self._tasks.start(StartRequest(**self._ids))).pid
        return self.pid

    async def wait(self) -> int:
        """Wait until it ends; its exit status, 128 and the number for a signal."""
        return (await self._tasks.wait(WaitRequest(**self._ids))).exit_status

    async def run(self) -> int:
        """Start it, and wait until it ends."""
        await self.start()
        return await self.wait()

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        await self._tasks.kill(KillRequest(**self._ids, signal=number, all=False))

    @property
    def output(self) -> bytes:
        """What it has written to its standard output."""
        return self.stdout.take()

    @property
    def errors(self) -> bytes:
        """What it has written to its standard error."""
        return self.stderr.take()


class Container(Process):
    """A container, and its own process."""

    env: Sequence[str] = ()

    @property
    def id(self) -> str:
        return self._ids["container_id"]

    async def exec(self, args: Sequence[str], *, id: str = "exec") -> Process:  # noqa: A002
        """One more process in it, which is not started yet."""
        process = Process(self._tasks, self.id, id, self._folder, self._stack)
        await self._tasks.exec(
            ExecProcessRequest(
                container_id=self.id,
                exec_id=id,
                stdout=str(process.stdout.path),
                stderr=str(process.stderr.path),
                spec=_packed("Process", _process(args, self.env)),
            )
        )
        return process


def _process(args: Sequence[str], env: Sequence[str]) -> dict[str, Any]:
    user = {"uid": os.getuid(), "gid": os.getgid()}
    return {"args": list(args), "cwd": "/", "env": list(env), "user": user}


def _packed(name: str, document: Mapping[str, Any]) -> AnyMessage:
    return AnyMessage(type_url=_SPEC_TYPE + name, value=json.dumps(document).encode())
