"""What all tasks of a namespace use, measured again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from taskd.client.client import Client
from taskd.client.container import Container
from taskd.client.stats import Stats
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
    """Asks the daemon in two calls, however many tasks there are."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, Container] = {}
        self._before: Mapping[str, Stats] = {}

    async def sample(self) -> list[Row]:
        tasks = (await self._client.tasks.list(ListTasksRequest())).tasks
        if any(task.id not in self._known for task in tasks):
            self._known = {each.id: each for each in await self._client.list()}
        found = {each.id: each for each in await self._client.stats()}
        rows = []
        for task in tasks:
            if (container := self._known.get(task.id)) is not None:
                container.found(task)
                rows.append(self._row(container, found.get(task.id)))
        self._before = found
        self._known = {row.id: row.container for row in rows}
        return rows

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
