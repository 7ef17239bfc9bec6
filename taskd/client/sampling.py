"""What all tasks of a namespace use, measured again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import anyio.to_thread

from taskd.client.channel import RETRY_SECONDS
from taskd.client.client import Client
from taskd.client.container import Container
from taskd.client.local import Groups
from taskd.client.stats import Stats
from taskd.errors import TaskdError
from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest
from taskd.proto.containerd.v1.types import Status
from taskd.wellknown import nanoseconds

__all__ = ["Row", "Sampler", "command_of", "status_of"]


def command_of(container: Container) -> str:
    """What its own process is."""
    return " ".join(container.spec.get("process", {}).get("args", ()))


def status_of(container: Container) -> str:
    """In Docker's words; a container whose task is deleted has none, and that is ``created``."""
    match container.task.status if container.task is not None else None:
        case Status.RUNNING:
            return "running"
        case Status.PAUSED | Status.PAUSING:
            return "paused"
        case Status.STOPPED:
            return "exited"
        case Status.UNKNOWN:
            return "unknown"
        case _:
            return "created"


_MEASURED = ("running", "paused", "unknown")
_LIST_SECONDS = 10.0
"""Of what does not happen but is so, as that a shim is silent, a listener hears after this time."""


@dataclass(frozen=True, slots=True)
class Row:
    """A task now. What is not known is None: a shim need not measure, nor answer."""

    container: Container
    status: str
    cpu: float | None
    """Share of one processor's time since the last measurement."""
    memory: int | None
    memory_limit: int | None
    pids: int | None
    io: float | None
    """Bytes a second, from and to block devices."""
    age: float
    """Seconds since the container was made."""

    @property
    def id(self) -> str:
        return self.container.id

    @property
    def command(self) -> str:
        return command_of(self.container)


class Sampler:
    """Reads what the kernel tells, and asks the daemon in one call for the rest, or two."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._containers: list[Container] = []
        """Those that have tasks."""
        self._groups = Groups()
        self._before: Mapping[str, Stats] = {}
        self._listens = False
        self._listed = -math.inf
        """When they were listed; never, if something has happened since."""

    async def listen(self) -> None:
        """Hear what happens, for ever: tasks are listed when there is a change, not each time."""
        while True:
            try:
                async with self._client.events('topic~="^/tasks/"') as events:
                    self._changed()
                    self._listens = True
                    async for _ in events:
                        self._changed()
            except TaskdError:
                pass  # who samples is told
            finally:
                self._listens = False
            await anyio.sleep(RETRY_SECONDS)

    def _changed(self) -> None:
        self._listed = -math.inf

    async def sample(self) -> list[Row]:
        """All tasks now. Raises `Unavailable` without a daemon, and what it has to say."""
        now = time.monotonic()
        try:
            if not self._listens or now - self._listed > _LIST_SECONDS:
                self._listed = now
                await self._list()
            found = await self._measure()
        except BaseException:
            self._changed()
            raise
        rows = [self._row(each, found.get(each.id)) for each in self._containers]
        self._before = found
        return rows

    async def _measure(self) -> Mapping[str, Stats]:
        """By id: from the kernel, if they are on this machine, and the daemon tells of the rest."""
        running = [each for each in self._containers if status_of(each) in _MEASURED]
        found, others = await anyio.to_thread.run_sync(self._groups.measure, running)
        if others:
            names = [] if len(others) == len(running) else [each.id for each in others]
            found |= {each.id: each for each in await self._client.stats(*names)}
        return found

    async def _list(self) -> None:
        tasks = (await self._client.tasks.list(ListTasksRequest())).tasks
        known = {each.id: each for each in self._containers}
        if any(task.id not in known for task in tasks):
            known = {each.id: each for each in await self._client.list()}
        for task in tasks:
            if task.id in known:
                known[task.id].found(task)
        self._containers = [known[task.id] for task in tasks if task.id in known]

    def _row(self, container: Container, now: Stats | None) -> Row:
        before = self._before.get(container.id)
        cpu = io = None
        if now is not None and before is not None and now.at > before.at:
            passed = now.at - before.at
            cpu = max(0.0, (now.cpu - before.cpu) / passed)
            moved = now.read + now.written - before.read - before.written
            io = max(0.0, moved / passed * 1e9)
        return Row(
            container,
            status_of(container),
            cpu,
            memory=None if now is None else now.memory,
            memory_limit=None if now is None else now.memory_limit,
            pids=None if now is None else now.pids,
            io=io,
            age=max(0.0, time.time() - nanoseconds(container.record.created_at) / 1e9),
        )
