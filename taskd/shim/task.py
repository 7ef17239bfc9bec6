"""A container with its processes, as a shim keeps them, and the events that tell of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskd import mounts
from taskd.errors import FailedPrecondition, NotFound
from taskd.proto.containerd import events
from taskd.proto.containerd.types import Mount
from taskd.shim.container import Container
from taskd.shim.process import Process
from taskd.shim.stdio import Streams
from taskd.wellknown import timestamp

__all__ = ["START_SECONDS", "Task"]

START_SECONDS = 10.0
"""For a process to be started when its client, or its container, has gone."""


class Task:
    """A container, and the processes in it."""

    def __init__(self, container: Container, rootfs: Path | None) -> None:
        self.container = container
        self.rootfs = rootfs
        """What was mounted for it."""
        self.execs: dict[str, Process] = {}
        self.init_ended = False
        """The init process has ended; its exit may not have been told yet."""
        # Execs that run, or are being started; and in what they are.
        self._running = 0
        self._starting: set[asyncio.Task[Any]] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def init(self) -> Process:
        return self.container.init

    @property
    def processes(self) -> tuple[Process, ...]:
        """The init process first."""
        return (self.init, *self.execs.values())

    def process(self, exec_id: str) -> Process:
        """Raises `NotFound`."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    async def open(self, process: Process) -> None:
        """Open its streams."""
        container = self.container
        process.streams = await Streams.open(
            process.stdio,
            process.id or container.id,
            container.namespace,
            container.reaper,
            container.pipes,
            process.opened,
        )
        process.opened()

    def unmount(self) -> None:
        """Raises OSError."""
        if self.rootfs is not None:
            mounts.unmount_below(self.rootfs)

    # --- execs that run -------------------------------------------------------------------

    def exec_begins(self) -> None:
        self._running += 1
        self._quiet.clear()

    def exec_over(self) -> None:
        self._running -= 1
        if not self._running:
            self._quiet.set()

    @contextmanager
    def starting_exec(self) -> Iterator[None]:
        """While one is started, which runs then, unless this raises.

        Raises `FailedPrecondition` if the container has ended, and does not wait for it any more.
        """
        not_running = f"container {self.container.id} init process is not running"
        if self.init_ended:
            raise FailedPrecondition(not_running)
        starting = asyncio.current_task()
        assert starting is not None
        self.exec_begins()
        self._starting.add(starting)
        try:
            yield
        except BaseException as exc:
            self.exec_over()
            if self.init_ended and isinstance(exc, asyncio.CancelledError):
                raise FailedPrecondition(not_running) from None
            raise
        finally:
            self._starting.remove(starting)

    async def quiet(self) -> None:
        """Wait until no exec runs, nor is being started."""
        if self._starting:
            # A runtime that hangs must not keep an exit from being told.
            await asyncio.wait(self._starting, timeout=START_SECONDS)
            for late in self._starting:
                late.cancel()
        await self._quiet.wait()

    # --- what is told ---------------------------------------------------------------------

    def created(self, rootfs: Sequence[Mount] = ()) -> events.TaskCreate:
        stdio = self.init.stdio
        return events.TaskCreate(
            container_id=self.container.id,
            bundle=str(self.container.bundle),
            rootfs=list(rootfs),
            io=events.TaskIo(
                stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal
            ),
            checkpoint=self.container.checkpoint,
            pid=self.init.pid,
        )

    def started(self, process: Process) -> events.TaskStart | events.TaskExecStarted:
        id, pid = self.container.id, process.pid  # noqa: A001
        if process is self.init:
            return events.TaskStart(container_id=id, pid=pid)
        return events.TaskExecStarted(container_id=id, exec_id=process.id, pid=pid)

    def exited(self, process: Process) -> events.TaskExit:
        return events.TaskExit(
            container_id=self.container.id,
            id=process.id or self.container.id,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
        )

    def deleted(self) -> events.TaskDelete:
        return events.TaskDelete(
            container_id=self.container.id,
            pid=self.init.pid,
            exit_status=self.init.exit_status,
            exited_at=timestamp(self.init.exited_at),
        )
