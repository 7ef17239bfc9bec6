"""The task service proper: which container, which runtime, which process.

Source: containerd's ``services/tasks/local.go`` (v1.7.0).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from taskd import filters, identifiers
from taskd.deprecations import Deprecations
from taskd.errors import InvalidArgument, NotFound, TaskdError, Unimplemented, Unknown
from taskd.metadata.containers import Container, ContainerStore
from taskd.metadata.images import Descriptor
from taskd.qos import Qos
from taskd.runtime.manager import TaskManager
from taskd.runtime.task import Task
from taskd.runtime.types import CreateOptions, Exit, ProcessInfo, Status, Stdio, TaskState
from taskd.tasks.archive import Checkpoints
from taskd.tasks.checkpoint import checkpoint_path, restore_path
from taskd.tasks.endpoint import Endpoint, Sandboxes, process
from taskd.tasks.rootfs import Rootfs
from taskd.types import Mount, TypedValue

__all__ = ["Metric", "TaskService"]

log = logging.getLogger(__name__)

T = TypeVar("T")

STATE_TIMEOUT = 2.0
"""Seconds a shim has to tell a process's state (``io.containerd.timeout.task.state``)."""


class Metric(NamedTuple):
    """Resource usage of one task, in whatever type its shim measures it."""

    id: str
    collected_at: int
    data: TypedValue | None


class Usage(NamedTuple):
    """What one task uses, and which it is."""

    namespace: str
    id: str
    runtime: str
    stats: TypedValue


class TaskService:
    """Tasks by namespace and container id. An empty `exec_id` means the init process.

    Every method raises `NotFound` for a container without a record, for one without a task, and
    for an exec that is not there; other errors are the shim's.
    """

    def __init__(
        self,
        containers: ContainerStore,
        tasks: TaskManager,
        sandboxes: Sandboxes,
        checkpoints: Checkpoints,
        qos: Qos,
        rootfs: Rootfs,
        others: Mapping[str, TaskManager] | None = None,
        *,
        runtimes: Mapping[str, str] | None = None,
        state_timeout: float = STATE_TIMEOUT,
    ) -> None:
        """`qos` has the classes that a container's annotations may name; `others` are the managers
        of runtimes, by name, that are not `tasks`'s; `runtimes` has names of those that answer in
        another's stead.
        """
        self._sandboxes = sandboxes
        self._containers = containers
        self._tasks = tasks
        self._checkpoints = checkpoints
        self._others = others or {}
        self._managers = (*self._others.values(), tasks)
        self._qos = qos
        self._runtimes = runtimes or {}
        self._rootfs = rootfs
        self.deprecations = Deprecations()
        """What tasks have been made with."""
        self._state_timeout = state_timeout
        self._deleting: set[asyncio.Task[Exit]] = set()

    async def create(
        self,
        namespace: str,
        container_id: str,
        *,
        rootfs: tuple[Mount, ...] = (),
        stdio: Stdio,
        options: TypedValue | None = None,
        runtime_path: str = "",
        checkpoint: Descriptor | None = None,
        endpoint: Endpoint | None = None,
    ) -> int:
        """Make a task of a container; returns the pid of its init process.

        That of a sandbox's container is made in the sandbox's process, or at the `endpoint`.
        It is restored from the checkpoint whose folder `options` name, or else from the content
        that `checkpoint` is. Raises `AlreadyExists`, and what `TaskManager.create`,
        `Checkpoints.unpack` and `Qos.apply` raise.
        """
        container = self._containers.get(namespace, container_id)
        where = endpoint or Endpoint()
        within = process(self._sandboxes, namespace, container, where, options)
        restored = restore_path(container.runtime_name, options)
        unpack = None
        if checkpoint is not None and not restored:
            unpack = self._checkpoints.unpack(namespace, checkpoint)
        if self.deprecations.used(container.runtime_name):
            log.warning(
                "%s is deprecated since containerd v1.4, consider using io.containerd.runc.v2",
                container.runtime_name,
            )
        runtime = runtime_path or self._runtime(container)
        spec = self._qos.apply(container.id, container.spec)
        async with self._rootfs.mounted(namespace, container.id, runtime, rootfs) as left:
            task = await self._manager(container).create(
                namespace,
                container.id,
                CreateOptions(
                    runtime=runtime,
                    spec=spec,
                    task_options=options,
                    runtime_options=container.runtime_options,
                    stdio=stdio,
                    rootfs=left,
                    checkpoint=restored,
                    unpack_checkpoint=unpack,
                    sandbox=container.sandbox_id if within is not None else "",
                ),
                within,
            )
        return task.pid

    async def start(self, namespace: str, container_id: str, exec_id: str) -> int:
        """Start a created process; returns its pid."""
        return await self._task(namespace, container_id).start(exec_id)

    async def delete(self, namespace: str, container_id: str) -> Exit:
        """Delete a task that has exited. Raises `FailedPrecondition` while it runs.

        Whoever asks may go away: its shim deletes it all the same, and ends with it.
        """
        deleting = asyncio.create_task(self._delete(namespace, container_id))
        self._deleting.add(deleting)
        deleting.add_done_callback(self._deleting.discard)
        return await asyncio.shield(deleting)

    async def _delete(self, namespace: str, container_id: str) -> Exit:
        self._task(namespace, container_id)
        manager = next(each for each in self._managers if each.has(namespace, container_id))
        exit_ = await manager.delete(namespace, container_id)
        await self._rootfs.unmount(namespace, container_id)
        return exit_

    async def delete_process(self, namespace: str, container_id: str, exec_id: str) -> Exit:
        """Delete a process that has exited. Raises `FailedPrecondition` while it runs."""
        return await self._task(namespace, container_id).delete_process(exec_id)

    async def get(self, namespace: str, container_id: str, exec_id: str) -> TaskState:
        """State of a process; `Status.UNKNOWN` if its shim does not tell in time."""
        return await self._state(self._task(namespace, container_id), exec_id)

    async def find(self, namespace: str, container_id: str) -> TaskState | None:
        """State of a container's own process; None without a record, or a task."""
        try:
            return await self.get(namespace, container_id, "")
        except NotFound:
            return None

    async def states(self, namespace: str) -> list[tuple[str, TaskState]]:
        """Id and state of every task of the namespace; all shims are asked at once."""

        async def ask(task: Task) -> tuple[str, TaskState]:
            return task.id, await self._state(task, "")

        return await _ask_all(self._all(namespace), ask)

    async def kill(
        self, namespace: str, container_id: str, exec_id: str, signal: int, everyone: bool
    ) -> None:
        await self._task(namespace, container_id).api.kill(exec_id, signal, everyone)

    async def exec(
        self,
        namespace: str,
        container_id: str,
        exec_id: str,
        spec: TypedValue | None,
        stdio: Stdio,
    ) -> None:
        """Add a process to a running task. Raises `InvalidArgument` for a bad exec id."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty", verbatim=True)
        task = self._task(namespace, container_id)
        try:
            identifiers.validate(exec_id)
        except InvalidArgument as exc:
            raise exc.within(f"invalid exec id {exec_id}") from None
        await task.exec(exec_id, spec, stdio)

    async def resize_pty(
        self, namespace: str, container_id: str, exec_id: str, width: int, height: int
    ) -> None:
        """Set the size, in characters, of a process's terminal."""
        await self._task(namespace, container_id).api.resize_pty(exec_id, width, height)

    async def close_io(
        self, namespace: str, container_id: str, exec_id: str, *, stdin: bool
    ) -> None:
        """Let a process read no more than what is in its standard input already."""
        task = self._task(namespace, container_id)
        if exec_id:
            await task.api.state(exec_id)  # whose errors are those that containerd gives
        if stdin:
            await task.api.close_stdin(exec_id)

    async def pause(self, namespace: str, container_id: str) -> None:
        await self._task(namespace, container_id).api.pause()

    async def resume(self, namespace: str, container_id: str) -> None:
        await self._task(namespace, container_id).api.resume()

    async def pids(self, namespace: str, container_id: str) -> list[ProcessInfo]:
        return await self._task(namespace, container_id).api.pids()

    async def checkpoint(
        self,
        namespace: str,
        container_id: str,
        options: TypedValue | None,
        lease: str | None = None,
    ) -> list[Descriptor]:
        """Write a running task down, into the folder that the options name, or as content.

        Returns what the content is: the checkpoint, and the container's specification. `lease`
        is the one that the caller works under, if any.
        """
        task = self._task(namespace, container_id)
        container = self._containers.get(namespace, container_id)
        path = checkpoint_path(container.runtime_name, options)
        if path:
            await task.checkpoint(path, options)
            return []
        return await self._checkpoints.store(
            namespace, container.spec, lease, lambda folder: task.checkpoint(folder, options)
        )

    async def update(
        self,
        namespace: str,
        container_id: str,
        resources: TypedValue | None,
        annotations: Mapping[str, str],
    ) -> None:
        """Change the limits of a task; `resources` is ``linux.resources`` of an OCI spec."""
        await self._task(namespace, container_id).api.update(resources, annotations)

    async def metrics(self, namespace: str, filter_expressions: Iterable[str]) -> list[Metric]:
        """Resource usage of the tasks that pass a filter on ``id`` and ``namespace``.

        A task whose shim fails or is slower than the state timeout is left out.
        """
        try:
            matches = await filters.prepare(filter_expressions)
        except InvalidArgument as exc:
            raise Unknown(str(exc)) from None  # as containerd has it

        async def ask(task: Task) -> Metric:
            return Metric(task.id, time.time_ns(), await self._stats(task))

        wanted = [task for task in self._all(namespace) if matches.match(_fields(task))]
        return await _ask_all(wanted, ask)

    async def usage(self) -> list[Usage]:
        """What the tasks of all namespaces use; see `metrics`."""

        async def ask(task: Task) -> Usage | None:
            stats = await self._stats(task)
            runtime = self._containers.get(task.namespace, task.id).runtime_name
            return Usage(task.namespace, task.id, runtime, stats) if stats else None

        return [usage for usage in await _ask_all(self._all(), ask) if usage]

    async def _stats(self, task: Task) -> TypedValue | None:
        # Not a cancel scope, which of many questions at once would cost a tenth.
        return await task.api.stats(timeout=self._state_timeout)

    async def wait(self, namespace: str, container_id: str, exec_id: str) -> Exit:
        """Wait, however long, for a process to exit."""
        return await self._task(namespace, container_id).wait(exec_id)

    def _manager(self, container: Container) -> TaskManager:
        return self._others.get(self._runtime(container), self._tasks)

    def _runtime(self, container: Container) -> str:
        """The runtime that is to run it: the record keeps the name that the client gave."""
        return self._runtimes.get(container.runtime_name, container.runtime_name)

    def _all(self, namespace: str | None = None) -> list[Task]:
        return [task for manager in self._managers for task in manager.all(namespace)]

    def _task(self, namespace: str, container_id: str) -> Task:
        container = self._containers.get(namespace, container_id)
        # Whatever runtime would answer now may not have answered when it was made.
        for manager in (self._manager(container), *self._managers):
            with suppress(NotFound):
                return manager.get(namespace, container.id)
        raise NotFound(f"task {container.id} not found", verbatim=True)

    async def _state(self, task: Task, exec_id: str) -> TaskState:
        try:
            return await task.state(exec_id, timeout=self._state_timeout)
        except NotFound:
            raise
        except TaskdError as exc:
            log.error("get state for %s/%s: %s", task.namespace, exec_id or task.id, exc)
            return TaskState(status=Status.UNKNOWN)


def _fields(task: Task) -> filters.Lookup:
    known = {"id": task.id, "namespace": task.namespace}

    def field(path: Sequence[str]) -> tuple[str, bool]:
        return known.get(path[0], ""), path[0] in known

    return field


async def _ask_all(tasks: list[Task], ask: Callable[[Task], Awaitable[T]]) -> list[T]:
    """Put one question to many tasks at once; those that are gone or fail are left out."""
    answers: dict[Task, T] = {}

    async def one(task: Task) -> None:
        try:
            answers[task] = await ask(task)
        except NotFound:
            pass  # deleted in the meantime
        except Unimplemented:
            pass  # a shim need not know; it would be said at each scrape
        except TaskdError as exc:
            log.error("asking shim %s/%s: %s", task.namespace, task.id, exc)

    # Not a task group: of its tasks each costs a tenth of a question, and no question fails.
    await asyncio.gather(*(one(task) for task in tasks))
    return [answers[task] for task in tasks if task in answers]
