"""Looks again and again. Source: containerd's ``plugins/restart``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup

from taskd.errors import DeadlineExceeded, NotFound, TaskdError
from taskd.metadata import Container
from taskd.metadata.told import ToldContainers
from taskd.restarts import policy
from taskd.runtime.types import Status, Stdio, TaskState
from taskd.snapshots import Snapshotter
from taskd.tasks import TaskService
from taskd.types import Mount

__all__ = ["RestartMonitor"]

_log = logging.getLogger(__name__)

CHANGE_SECONDS = 120.0
"""For a task to be ended, made and started, on which containerd has no bound."""

_SIGKILL = 9


class RestartMonitor:
    """Brings the tasks of labelled containers to the status that they are to have."""

    def __init__(
        self,
        containers: ToldContainers,
        tasks: TaskService,
        snapshotters: Mapping[str, Snapshotter],
        interval: float,
    ) -> None:
        """It looks every `interval` seconds."""
        self._containers = containers
        self._tasks = tasks
        self._snapshotters = snapshotters
        self._interval = interval
        self._busy: set[tuple[str, str]] = set()
        """Containers that are being seen to."""
        self._told: dict[tuple[str, str], str] = {}
        """What was wrong with a container's labels when last it was looked at."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look again and again, as long as the context is open."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._run, group)
            yield
            group.cancel_scope.cancel()

    async def _run(self, group: TaskGroup) -> None:
        while True:
            self._look(group)
            await anyio.sleep(self._interval)

    def _look(self, group: TaskGroup) -> None:
        """Begin to see to each container that nobody is seeing to: none waits for another."""
        try:
            labelled = self._containers.labelled(policy.STATUS)
        except TaskdError as error:
            _log.error("containers that are to be restarted are not known: %s", error)
            return
        for namespace, container in labelled:
            if (namespace, container.id) not in self._busy:
                self._busy.add((namespace, container.id))
                group.start_soon(self._see_to, namespace, container)

    async def _see_to(self, namespace: str, container: Container) -> None:
        name = namespace, container.id
        try:
            state = await self._tasks.find(namespace, container.id)
            wanted = container.labels[policy.STATUS]
            if state is not None and state.status.name.lower() == wanted:
                return
            if wanted == "running" and self._restarts(name, container, state):
                change = partial(self._start, namespace, container)
            elif wanted == "stopped" and state is not None:
                change = partial(self._end, namespace, container.id)
            else:
                return
            with anyio.move_on_after(CHANGE_SECONDS):
                await change()
                return
            raise DeadlineExceeded(f"not done after {CHANGE_SECONDS:g} s")
        except (TaskdError, OSError) as error:
            _log.error("restart of %s/%s: %s", namespace, container.id, error)
        finally:
            self._busy.discard(name)

    def _restarts(
        self, name: tuple[str, str], container: Container, state: TaskState | None
    ) -> bool:
        age = (time.time_ns() - container.created_at) / 1e9
        if (state is None or state.status is Status.CREATED) and 0 <= age < self._interval:
            return False  # whoever has made the container is about to start its task
        # One whose shim does not answer may run: it is not for us to kill it.
        if state is not None and state.status in (Status.PAUSED, Status.PAUSING, Status.UNKNOWN):
            return False
        try:
            found = policy.restarts(container.labels, 0 if state is None else state.exit_status)
        except ValueError as error:
            if self._told.get(name) != str(error):
                _log.error("restart of %s/%s: %s", *name, error)
            self._told[name] = str(error)
            return False
        self._told.pop(name, None)
        return found

    async def _start(self, namespace: str, container: Container) -> None:
        stdio = _stdio(container)
        try:
            tried = policy.count(container.labels)
        except ValueError:
            tried = 0
        await self._note(namespace, container, tried + 1)
        await self._end(namespace, container.id)
        rootfs: tuple[Mount, ...] = ()
        if container.snapshot_key:
            snapshotter = self._snapshotters.get(container.snapshotter)
            if snapshotter is None:
                raise NotFound(f"snapshotter {container.snapshotter}")
            rootfs = tuple(snapshotter.mounts(namespace, container.snapshot_key))
        await self._tasks.create(namespace, container.id, rootfs=rootfs, stdio=stdio)
        await self._tasks.start(namespace, container.id, "")
        _log.info("%s/%s is restarted, for the %d. time", namespace, container.id, tried + 1)

    async def _note(self, namespace: str, container: Container, tried: int) -> None:
        """Let the container's label say how often it has been restarted."""
        labels = {policy.COUNT: str(tried)}
        path = f"labels.{policy.COUNT}"
        await self._containers.update(namespace, Container(container.id, labels=labels), [path])

    async def _end(self, namespace: str, container_id: str) -> None:
        """Kill a task, if there is one, and delete it."""
        try:
            await self._tasks.kill(namespace, container_id, "", _SIGKILL, everyone=True)
        except NotFound:
            pass  # it has ended, or there is none
        else:
            await self._tasks.wait(namespace, container_id, "")
        with suppress(NotFound):
            await self._tasks.delete(namespace, container_id)


def _stdio(container: Container) -> Stdio:
    """Where its labels have it write; nowhere if they say nothing."""
    uri = container.labels.get(policy.LOG_URI, "")
    if not uri:
        return Stdio()
    if _has_terminal(container):
        return Stdio(stdout=uri, terminal=True)
    return Stdio(stdout=uri, stderr=uri)


def _has_terminal(container: Container) -> bool:
    try:
        document = json.loads(container.spec.value if container.spec else b"")
        return bool(document["process"]["terminal"])
    except (KeyError, TypeError, ValueError):
        return False
