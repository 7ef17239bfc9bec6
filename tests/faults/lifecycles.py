"""Short containers, driven from creation to deletion whatever happens to the daemon."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from harness.containers import spec
from harness.daemons import Daemon, client
from harness.databases import copied

from taskd.proto.containerd.events import TaskCreate, TaskDelete, TaskExit, TaskStart
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

__all__ = ["Fleet", "steps", "told", "whole"]

_STEPS = {
    "/tasks/create": TaskCreate,
    "/tasks/start": TaskStart,
    "/tasks/exit": TaskExit,
    "/tasks/delete": TaskDelete,
}
_GONE = (StreamTerminatedError, OSError, asyncio.TimeoutError)


class Fleet:
    """So many containers of a namespace, a few at a time."""

    def __init__(self, daemon: Daemon, namespace: str, rootfs: Path, count: int) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.ids = [f"c{number}" for number in range(count)]
        self.done: set[str] = set()
        self._spec = spec(rootfs, ["true"])

    async def run(self, at_once: int = 4) -> None:
        waiting = list(reversed(self.ids))

        async def work() -> None:
            while waiting:
                container = waiting.pop()
                await self._drive(container)
                self.done.add(container)

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _drive(self, container: str) -> None:
        runtime = ContainerRuntime(name="io.containerd.runc.v2")
        record = Container(id=container, runtime=runtime, spec=self._spec)
        create = CreateContainerRequest(container=record)
        await self._until(ContainersStub, "create", create, "already exists")
        for method, request, done in (
            ("create", CreateTaskRequest(container_id=container), "already exists"),
            ("start", StartRequest(container_id=container), "already started|stopped"),
            ("wait", WaitRequest(container_id=container), ""),
            ("delete", DeleteTaskRequest(container_id=container), ""),
        ):
            if not await self._until(TasksStub, method, request, done):
                break  # it is gone: its shim was killed, or a call came through unheard
        await self._until(ContainersStub, "delete", DeleteContainerRequest(id=container))

    async def _until(self, stub: Any, method: str, request: object, done: str = "") -> bool:
        """Call until it works, or the error says that it is `done`; False if it is not there."""
        while True:
            try:
                async with client(self.daemon.address, self.namespace) as channel:
                    await asyncio.wait_for(getattr(stub(channel), method)(request), 30)
            except GRPCError as exc:
                if exc.status == Status.NOT_FOUND:
                    return False
                if done and re.search(done, exc.message or ""):
                    return True
            except _GONE:
                pass
            else:
                return True
            await asyncio.sleep(0.05)


def told(root: Path, namespace: str) -> dict[str, list[str]]:
    """The steps of each container's tasks, in the order in which the journal has them."""
    with copied(root / "events.db") as connection:
        rows = connection.execute(
            "SELECT topic, value FROM events WHERE namespace = ? ORDER BY position", (namespace,)
        ).fetchall()
    return steps(rows)


def steps(events: Iterable[tuple[str, bytes]]) -> dict[str, list[str]]:
    """The steps of each container's tasks, from topics and serialised events."""
    found: dict[str, list[str]] = defaultdict(list)
    for topic, value in events:
        if message_type := _STEPS.get(topic):
            found[message_type.parse(value).container_id].append(topic.rpartition("/")[2])
    return found


def whole(steps: list[str]) -> bool:
    """Whether these are the steps of tasks, each told once and in order, to the end."""
    return (
        re.fullmatch("(create (start )?exit delete )+", "".join(f"{s} " for s in steps)) is not None
    )
