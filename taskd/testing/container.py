"""Containers of a test, and the processes in them."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from grpclib.exceptions import GRPCError

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
from taskd.testing.clearing import whatever_happens
from taskd.testing.spec import packed, process

__all__ = ["Container", "Process", "container"]

END_SECONDS = 20.0
"""For a container to be killed and deleted in the end; then that is a TimeoutError."""


@asynccontextmanager
async def container(
    channel: Channel,
    folder: Path,
    id: str,  # noqa: A002
    runtime: str,
    spec: Mapping[str, Any],
    options: AnyMessage | None,
) -> AsyncIterator[Container]:
    """A container that is created, and killed and removed in the end. See `Daemon.container`."""
    records, tasks = ContainersStub(channel), TasksStub(channel)
    record = Record(id=id, runtime=ContainerRuntime(name=runtime), spec=packed("Spec", spec))
    await records.create(CreateContainerRequest(container=record))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as streams, ExitStack() as stack:
            made = Container(tasks, id, "", Path(streams), stack)
            made.env = spec["process"].get("env", ())
            created = await tasks.create(
                CreateTaskRequest(
                    container_id=id,
                    stdout=str(made.stdout.path),
                    stderr=str(made.stderr.path),
                    options=options,
                )
            )
            made.pid = created.pid
            try:
                yield made
            finally:
                await whatever_happens(_end(made, tasks))
    finally:
        await whatever_happens(records.delete(DeleteContainerRequest(id=id)))


async def _end(made: Container, tasks: TasksStub) -> None:
    with anyio.fail_after(END_SECONDS):
        with suppress(GRPCError):  # it has ended already, or has not begun
            await made.kill()
            await made.wait()
        await tasks.delete(DeleteTaskRequest(container_id=made.id))


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
        # Of its own, so that it is the daemon that refuses an id that is taken.
        streams = Path(tempfile.mkdtemp(dir=folder))
        self.stdout = _Output(streams / "stdout")
        stack.callback(self.stdout.close)
        self.stderr = _Output(streams / "stderr")
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

    def __init__(
        self, tasks: TasksStub, container_id: str, exec_id: str, folder: Path, stack: ExitStack
    ) -> None:
        super().__init__(tasks, container_id, exec_id, folder, stack)
        self._execs = count(1)

    @property
    def id(self) -> str:
        return self._ids["container_id"]

    async def exec(self, args: Sequence[str], *, id: str | None = None) -> Process:  # noqa: A002
        """One more process in it, which is not started yet; by default under a new id."""
        exec_id = f"exec-{next(self._execs)}" if id is None else id
        added = Process(self._tasks, self.id, exec_id, self._folder, self._stack)
        await self._tasks.exec(
            ExecProcessRequest(
                container_id=self.id,
                exec_id=exec_id,
                stdout=str(added.stdout.path),
                stderr=str(added.stderr.path),
                spec=packed("Process", process(args, self.env)),
            )
        )
        return added
