"""What all tasks are and use, measured once for all who look; while nobody does, not at all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from taskd import errors
from taskd.client import Client, Container
from taskd.client.sampling import Row, Sampler
from taskd.errors import TaskdError
from taskd.proto.taskd.v1 import ListShimsRequest, ShimsStub
from taskd.wellknown import nanoseconds

__all__ = ["Watch"]

SECONDS = 1.0
_SHIMS_SECONDS = 5.0
"""A task may be another process's by then, which goes on with it."""
KEPT = 120
"""Measurements of each task that graphs are drawn of."""


class Watch:
    """Use `watched` in ``with`` to look; `run` is what measures."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sampler = Sampler(client)
        self._watchers = 0
        self._wanted = anyio.Event()
        self._due = anyio.Event()
        self._told = anyio.Event()
        self._past: dict[str, deque[tuple[float | None, int | None]]] = {}
        self._shims: dict[str, int] = {}
        self._known: dict[str, tuple[Container, dict[str, Any]]] = {}
        self._shims_at = -_SHIMS_SECONDS
        self._has_shims: bool | None = None
        self.tasks: Sequence[dict[str, Any]] = []
        """What they are: this changes when something happens."""
        self.use: dict[str, Any] = {}
        """What they use, and when that was."""
        self.trouble = ""
        """Why there is nothing newer."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._watchers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def hurry(self) -> None:
        """Measure now: something has been done."""
        self._due.set()

    async def next(self) -> None:
        """Wait until there is something new."""
        await self._told.wait()

    def past(self) -> dict[str, list[tuple[float | None, int | None]]]:
        """Processor and memory of each task so far, the oldest first."""
        return {name: list(each) for name, each in self._past.items()}

    async def run(self) -> None:
        """Measure, for ever."""
        while True:
            await self._wanted.wait()
            async with anyio.create_task_group() as group:
                group.start_soon(self._sampler.listen)
                while self._watchers:
                    self._due = anyio.Event()
                    await self._measure()
                    self._told.set()
                    self._told = anyio.Event()
                    with anyio.move_on_after(SECONDS):
                        await self._due.wait()
                group.cancel_scope.cancel()
            if not self._watchers:
                self._wanted = anyio.Event()

    async def _measure(self) -> None:
        try:
            rows = await self._sampler.sample()
            old = time.monotonic() > self._shims_at + _SHIMS_SECONDS
            if old or any(not self._shims.get(row.id) for row in rows):
                await self._find_shims()
        except (TaskdError, OSError) as exc:
            self.trouble = errors.words(exc)
            return
        self.trouble = ""
        self._past = {row.id: self._past.get(row.id) or deque(maxlen=KEPT) for row in rows}
        for row in rows:
            self._past[row.id].append((row.cpu, row.memory))
        self._known = {row.id: (row.container, self._constant(row)) for row in rows}
        self.tasks = [self._about(row) for row in rows]
        self.use = {
            "at": time.time_ns() // 10**6,
            "use": {
                row.id: (row.cpu, row.memory, row.memory_limit, row.pids, row.io) for row in rows
            },
        }

    def _constant(self, row: Row) -> dict[str, Any]:
        """What its specification says, which is read once."""
        container, known = self._known.get(row.id, (None, {}))
        if container is row.container:
            return known
        container = row.container
        return {
            "id": row.id,
            "image": container.source,
            "command": row.command,
            "created": nanoseconds(container.record.created_at) // 10**6,
            "runtime": Path(container.runtime).name,
        }

    def _about(self, row: Row) -> dict[str, Any]:
        task = row.container.task
        ended = task is not None and row.status == "exited"
        return self._known[row.id][1] | {
            "status": row.status,
            "code": task.exit_status if task is not None and ended else None,
            "pid": 0 if ended else row.container.pid,
            "shim": self._shims.get(row.id, 0),
        }

    async def _find_shims(self) -> None:
        self._shims_at = time.monotonic()
        if self._has_shims is None:
            self._has_shims = await self._client.is_taskd()
        if not self._has_shims:
            return
        found = (await ShimsStub(self._client.channel).list(ListShimsRequest())).shims
        self._shims = {
            tenant.id: shim.pid
            for shim in found
            for tenant in shim.tenants
            if tenant.namespace == self._client.namespace
        }
