"""Containers that are to be gone once they have ended, whoever is still there then.

What ``docker run --rm --detach`` asks of Docker's daemon; containerd's has nothing like it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from taskd import logger
from taskd.errors import NotFound, ResourceExhausted, TaskdError
from taskd.events import Bus
from taskd.labels import REMOVE, STREAMS, is_to_go, log_of
from taskd.metadata import Container
from taskd.metadata.told import ToldContainers
from taskd.proto.containerd import events
from taskd.runtime.types import Status, Stdio
from taskd.snapshots import Snapshotter
from taskd.tasks import TaskService
from taskd.wellknown import unpack

__all__ = ["Removals"]

_log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Between two attempts to remove what could not be removed."""

MAKING_SECONDS = 60.0
"""After which a container without a task is one that had one, and not one that is being made, if
no exit has been told of it.
"""

READ_SECONDS = 0.2
"""Between two looks at whether what it has written is still being read."""

_FILTER = 'topic=="/tasks/exit"'


class _Exits:
    """What has been told of one container's ends."""

    def __init__(self, last: int) -> None:
        self.last = last
        """When the last one was, of this container or of an earlier one of its name."""
        self.news = anyio.Event()
        """There has been one since it was last looked at."""

    def tell(self, when: int) -> None:
        self.last = max(self.last, when)
        self.news.set()


class Removals:
    """Removes containers labelled `REMOVE`, with snapshot and log, when their exits are told."""

    def __init__(
        self,
        containers: ToldContainers,
        tasks: TaskService,
        snapshotters: Mapping[str, Snapshotter],
        bus: Bus,
    ) -> None:
        self._containers = containers
        self._tasks = tasks
        self._snapshotters = snapshotters
        self._bus = bus
        self._busy: dict[tuple[str, str], _Exits] = {}
        """Those that are being seen to."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See to what has ended meanwhile, and then to what ends."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._run, group)
            yield
            group.cancel_scope.cancel()

    async def _run(self, group: TaskGroup) -> None:
        while True:
            try:
                await self._follow(group)
            except TaskdError as error:
                _log.error("containers that are to be removed are not known: %s", error)
                await anyio.sleep(RETRY_SECONDS)

    async def _follow(self, group: TaskGroup) -> None:
        """Begin with all that are labelled; returns when exits have been missed."""
        async with self._bus.subscribe([_FILTER], internal=True) as exits:
            for namespace, container in self._containers.labelled(REMOVE):
                self._begin(group, (namespace, container.id), 0)
            while True:
                try:
                    entries = await exits.next_batch()
                except ResourceExhausted:
                    return
                for entry in entries:
                    event = unpack(entry.envelope.event) if entry.envelope.event else None
                    # Of execs the id is their own.
                    if isinstance(event, events.TaskExit) and event.id in (event.container_id, ""):
                        name = (entry.envelope.namespace, event.container_id)
                        self._begin(group, name, entry.envelope.timestamp)

    def _begin(self, group: TaskGroup, name: tuple[str, str], exited_at: int) -> None:
        if name in self._busy:
            self._busy[name].tell(exited_at)
        elif self._wanted(*name):
            self._busy[name] = _Exits(exited_at)
            group.start_soon(self._see_to, name, self._busy[name])

    def _wanted(self, namespace: str, container_id: str) -> Container | None:
        """The container, if it is there and labelled."""
        try:
            container = self._containers.get(namespace, container_id)
        except NotFound:
            return None
        return container if is_to_go(container.labels, container_id) else None

    async def _see_to(self, name: tuple[str, str], exits: _Exits) -> None:
        told = False
        try:
            while True:
                exits.news = anyio.Event()
                try:
                    container = self._wanted(*name)
                    done = container is None or await self._removed(name[0], container, exits)
                except (TaskdError, OSError) as error:
                    if not told:
                        _log.error("removal of %s/%s: %s", *name, error)
                    told, done = True, False
                if not done:
                    with anyio.move_on_after(RETRY_SECONDS):
                        await exits.news.wait()
                elif not exits.news.is_set():
                    return
        finally:
            del self._busy[name]

    async def _removed(self, namespace: str, container: Container, exits: _Exits) -> bool:
        """Remove it if it has ended; False if it is to be looked at again."""
        state = await self._tasks.find(namespace, container.id)
        if state is None and exits.last < container.created_at and _is_young(container):
            return False
        if state is not None and state.status is not Status.STOPPED:
            return state.status is not Status.UNKNOWN  # it runs: its exit is still to be told
        stdio = state.stdio if state is not None else Stdio()
        await _wait_for_readers(stdio)
        if not self._is_still(namespace, container):
            return True
        with suppress(NotFound):
            await self._tasks.delete(namespace, container.id)
        snapshotter = self._snapshotters.get(container.snapshotter)
        if container.snapshot_key and snapshotter is not None:
            with suppress(NotFound):
                await snapshotter.remove(namespace, container.snapshot_key)
        log = log_of(container.labels, namespace, container.id)
        await anyio.to_thread.run_sync(_remove_files, stdio, log)
        if not self._is_still(namespace, container):
            return True
        with suppress(NotFound):
            await self._containers.delete(namespace, container.id)
        _log.debug("%s/%s has ended and is removed", namespace, container.id)
        return True

    def _is_still(self, namespace: str, container: Container) -> bool:
        """Whether nobody has removed it, and made another one of that name."""
        found = self._wanted(namespace, container.id)
        return found is not None and found.created_at == container.created_at


def _is_young(container: Container) -> bool:
    return time.time_ns() - container.created_at < MAKING_SECONDS * 1e9


def _remove_files(stdio: Stdio, log: Path | None) -> None:
    """Its log, and the FIFOs that a client of ours has left, with the folders that are theirs."""
    if log is not None:
        logger.remove(log)
    for path in _fifos(stdio):
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()
            path.parent.parent.rmdir()


async def _wait_for_readers(stdio: Stdio) -> None:
    """With its task goes what the shim has not got rid of yet."""
    while True:
        if not await anyio.to_thread.run_sync(_is_read, stdio):
            return
        await anyio.sleep(READ_SECONDS)


def _is_read(stdio: Stdio) -> bool:
    """Whether a client of ours reads its output: it has a lock as long as it does."""
    for path in _fifos(stdio):
        with suppress(OSError):
            fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fifo, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fifo)
    return False


def _fifos(stdio: Stdio) -> Iterator[Path]:
    """Those of its streams that a client of ours has made."""
    for path in map(Path, filter(None, (stdio.stdin, stdio.stdout, stdio.stderr))):
        if path.parent.parent.name.startswith(STREAMS) and path.is_fifo():
            yield path
