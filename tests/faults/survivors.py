"""Containers that write and end, each in its own way, whatever happens to their shims."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from harness.containers import spec
from harness.daemons import Taskd, client

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

__all__ = ["OCI", "PROCESS", "Survivor", "all_live"]

OCI, PROCESS = "io.taskd.oci.v1", "io.taskd.process.v1"
_STATUSES = [each for each in range(1, 255) if each != 128 + signal.SIGKILL]
"""Neither that of one that was killed, nor that of one whose end nobody saw."""
_GONE = (StreamTerminatedError, OSError, asyncio.TimeoutError)


class Survivor:
    """One container, from its making to its deletion."""

    def __init__(
        self, daemon: Taskd, namespace: str, rootfs: Path, number: int, runtime: str, lines: int
    ) -> None:
        self.id = f"c{number}"
        self.status = _STATUSES[number % len(_STATUSES)]
        """Its own, with which it ends."""
        self.broken_off = False
        """Nobody answered a Create that had been asked for."""
        self.exits: list[int] = []
        self.output = b""
        self.wanted = b"".join(b"%s %d\n" % (self.id.encode(), line) for line in range(lines))
        self._daemon = daemon
        self._namespace = namespace
        self._runtime = runtime
        self._fifo = daemon.folder / f"{self.id}.out"
        step = f'i=0; while [ $i -lt {lines} ]; do echo "{self.id} $i"; i=$((i+1))'
        script = f"{step}; sleep 0.05; done; exit {self.status}"
        self._spec = spec(rootfs, ["/bin/sh", "-c", script])

    async def live(self) -> None:
        os.mkfifo(self._fifo)
        reader = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)
        reading = asyncio.create_task(self._read(reader))
        try:
            await self._live()
            for _ in range(500):
                if self.wanted in self.output:
                    break
                await asyncio.sleep(0.02)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            os.close(reader)

    async def _read(self, reader: int) -> None:
        while True:
            with suppress(BlockingIOError):
                self.output += os.read(reader, 65536)
            await asyncio.sleep(0.01)

    async def _live(self) -> None:
        record = Container(
            id=self.id, runtime=ContainerRuntime(name=self._runtime), spec=self._spec
        )
        create = CreateContainerRequest(container=record)
        await self._until(ContainersStub, "create", create, "already exists")
        task = CreateTaskRequest(container_id=self.id, stdout=str(self._fifo))
        # And not the bundle of one that was half made.
        await self._until(TasksStub, "create", task, f"task {self.id}: already exists")
        start = StartRequest(container_id=self.id)
        await self._until(TasksStub, "start", start, "already started|stopped|running process")
        for method, request in (
            ("wait", WaitRequest(container_id=self.id)),
            ("delete", DeleteTaskRequest(container_id=self.id)),
        ):
            answer = await self._until(TasksStub, method, request)
            if answer is not None:
                self.exits.append(answer.exit_status)
        await self._until(ContainersStub, "delete", DeleteContainerRequest(id=self.id))

    async def _until(self, stub: Any, method: str, request: object, done: str = "") -> Any:
        """The answer, or None if it is `done` or gone."""
        while True:
            try:
                async with client(self._daemon.address, self._namespace) as channel:
                    return await asyncio.wait_for(getattr(stub(channel), method)(request), 60)
            except GRPCError as exc:
                if exc.status == Status.NOT_FOUND:
                    return None
                if done and re.search(done, exc.message or ""):
                    return None
                self.broken_off |= method == "create"
            except (ConnectionRefusedError, FileNotFoundError):
                pass
            except _GONE:
                self.broken_off |= method == "create"
            await asyncio.sleep(0.1)


async def all_live(survivors: Iterable[Survivor], at_once: int) -> None:
    """Have each of them live, so many `at_once`."""
    waiting = iter(survivors)

    async def work() -> None:
        for each in waiting:
            await each.live()

    await asyncio.gather(*(work() for _ in range(at_once)))
