"""The task manager: makes, finds, and deletes all tasks whose shims are of one generation.

Sources: containerd's ``runtime/v2/task_manager.go``, ``shim.go`` and ``shim_load.go``.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio
from anyio.abc import TaskGroup

from taskd import moves, ttrpc
from taskd.errors import AlreadyExists, DeadlineExceeded, NotFound, TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.endings import DIED, FINISHED, NOT_STARTED, UNKNOWN, Delete, Ending
from taskd.runtime.locks import KeyedLock
from taskd.runtime.shim import Shim, State, Tenant
from taskd.runtime.shims import Shims
from taskd.runtime.task import Fate, Observer, Task
from taskd.runtime.types import CreateOptions, Exit, Key

__all__ = ["TaskManager"]

log = logging.getLogger(__name__)

_LOADS_AT_ONCE = 32
_GREETING_SECONDS = 1.0
"""Between two questions to a shim that does not answer."""


class TaskManager:
    """The tasks that live in `shims`.

    `group` owns what goes on in the background. `observer` is told what becomes of the tasks.
    """

    def __init__(self, shims: Shims, group: TaskGroup, observer: Observer) -> None:
        self._shims = shims
        self._group = group
        self._observer = observer
        self._tasks: dict[Key, Task] = {}
        self._busy: KeyedLock[Key] = KeyedLock()

    def get(self, namespace: str, id: str) -> Task:  # noqa: A002
        """Raises `NotFound`."""
        try:
            return self._tasks[Key(namespace, id)]
        except KeyError:
            raise NotFound(f"task {id}") from None

    def has(self, namespace: str, id: str) -> bool:  # noqa: A002
        return Key(namespace, id) in self._tasks

    def all(self, namespace: str | None = None) -> list[Task]:
        """The tasks of a namespace, or all."""
        return [task for task in self._tasks.values() if namespace in (None, task.namespace)]

    async def create(
        self,
        namespace: str,
        id: str,  # noqa: A002
        options: CreateOptions,
        within: Shim | Bootstrap | None = None,
    ) -> Task:
        """Start a shim and make a task in it, or in the process `within`.

        Raises `AlreadyExists` if there is such a task, what `Shims.start` does, and the shim's
        error if it does not make the task. Nothing is left behind then, nor if the caller is
        cancelled.
        """
        key = Key(namespace, id)
        async with self._busy.hold(key):
            if key in self._tasks:
                raise AlreadyExists(f"task {id}")
            moves.expect()
            try:
                tenant = await self._shims.start(key, options, within=within)
            except TaskdError as exc:
                raise exc.within("failed to start shim") from exc
            task = self._task(tenant)
            answered = False
            try:
                if options.unpack_checkpoint is not None:
                    folder = task.bundle.work / "checkpoint"
                    await options.unpack_checkpoint(folder)
                    options = replace(options, checkpoint=str(folder))
                try:
                    pid = await task.api.create(str(task.bundle.path), options)
                except (ttrpc.ConnectionClosed, DeadlineExceeded):
                    raise
                except TaskdError:
                    answered = True
                    raise
                task.process("").pid = pid
                await self._observer.created(task, options)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._abandon(task, options, refused=answered)
                raise
            self._admit(task)
            return task

    async def delete(self, namespace: str, id: str) -> Exit:  # noqa: A002
        """Delete a task that has exited, with its shim and its bundle; returns its exit.

        If the shim dies meanwhile the task is gone all the same, and its exit is what could be
        found out. Raises `NotFound`, or the shim's error (`FailedPrecondition` while it runs).
        """
        async with self._busy.hold(Key(namespace, id)):
            task = self.get(namespace, id)
            try:
                found = await task.api.delete_task()
            except ttrpc.ConnectionClosed:
                pass
            except NotFound:
                # The shim does not know its own task: there is nothing to keep it for. One that
                # has died, and that nobody goes on with, is somebody else's to take down.
                if task.fate is not Fate.LOST:
                    with anyio.CancelScope(shield=True):
                        await task.deleted(None)
                        await self._finish(task)
                    raise
            else:
                with anyio.CancelScope(shield=True):
                    await task.deleted(found)
                    await self._finish(task)
                return found
        # Whoever buries it, which needs the lock, finds out.
        return await task.end()

    async def load(self, grace: float) -> set[Key]:
        """Reconnect to the shims of an earlier daemon and clean up after those that died.

        Returns the keys of all bundles, after `grace` seconds at the latest: what has not ended by
        then goes on in the background. A shim that does not answer is in the list, as its container
        may be running, and is asked until it does. Entries that are no bundles are left alone.
        """
        known, tenants = await self._shims.survey()
        unfinished = {tenant.key for tenant in tenants}
        finished = anyio.Event()
        limiter = anyio.CapacityLimiter(_LOADS_AT_ONCE)

        async def load(tenant: Tenant) -> None:
            try:
                await self._load(tenant, limiter)
            finally:
                unfinished.discard(tenant.key)
                if not unfinished:
                    finished.set()

        for tenant in tenants:
            self._group.start_soon(load, tenant)
        if tenants:
            with anyio.move_on_after(grace):
                await finished.wait()
        if unfinished:
            log.warning("serving, while %d shims have not answered yet", len(unfinished))
        return known

    def _task(self, tenant: Tenant) -> Task:
        return Task(
            tenant,
            self._shims.api(tenant.shim, tenant.bundle),
            self._observer,
            self._group.start_soon,
        )

    def _admit(self, task: Task) -> None:
        self._tasks[task.key] = task
        task.tenant.lost = partial(self._lost, task)
        if task.shim.state is State.GONE:
            self._lost(task)

    # --- ending ---------------------------------------------------------------------------

    async def _abandon(self, task: Task, options: CreateOptions, *, refused: bool) -> None:
        """Take down a tenant of which no task could be made.

        A shim that has `refused` to make it has undone what it did itself, unless it has noted an
        init process: what its ``delete`` would find under that id is somebody else's. One that has
        not answered may have been killed, or be making the task still: it deletes it then, once it
        is there, whether it is waited for or not.
        """
        found = None
        failed = False
        with anyio.move_on_after(self._shims.timeouts.cleanup) as asking:
            try:
                found = await task.api.delete("")
            except (NotFound, ttrpc.ConnectionClosed):
                pass
            except TaskdError as exc:
                log.warning("shim %s does not delete what nobody wants: %s", task.key, exc)
                failed = True
        left = not refused or (task.bundle.path / "init.pid").exists()
        ending = Ending(
            asks=not asking.cancelled_caught,  # one that hangs is asked no more
            trusts=refused,
            delete=Delete.ALWAYS if left else Delete.UNLESS_AGREED,
        )
        await self._shims.take_down(task.tenant, ending)
        if failed and not task.shim.ends:
            # What may have been in its way is gone; one that goes on is not to keep the rest.
            with anyio.move_on_after(self._shims.timeouts.cleanup), suppress(TaskdError):
                await task.api.delete("")
        await self._observer.abandoned(task, options, found)

    async def _finish(self, task: Task) -> None:
        """Take down a task that is deleted."""
        await self._shims.take_down(task.tenant, FINISHED)
        task.close()
        del self._tasks[task.key]

    def _lost(self, task: Task) -> None:
        """Its shim has died."""
        if task.fate is not Fate.LOST:
            task.fate = Fate.LOST
            self._group.start_soon(self._bury, task, DIED)

    async def _bury(self, task: Task, ending: Ending) -> None:
        """Take down a task of which its shim cannot tell how it has ended."""
        async with self._busy.hold(task.key):
            if self._tasks.get(task.key) is not task:
                return  # it has just been deleted
            found = await self._end_unseen(task.tenant, ending, task.pid)
            del self._tasks[task.key]
        task.ended(found)
        await self._observer.lost(task.key, found)

    async def _end_unseen(self, tenant: Tenant, ending: Ending, pid: int = 0) -> Exit:
        """Take a tenant down; what is known of its task's exit."""
        found = await self._shims.take_down(tenant, ending)
        if found is None:
            # 255: containerd's status for an exit that nobody saw.
            return Exit(pid, 255, time.time_ns())
        return replace(found, pid=found.pid or pid)

    # --- loading --------------------------------------------------------------------------

    async def _load(self, tenant: Tenant, limiter: anyio.CapacityLimiter) -> None:
        if tenant.binary is None:
            # Whoever makes one of that name now waits until this one has gone.
            async with self._busy.hold(tenant.key):
                await self._shims.take_down(tenant, NOT_STARTED)
            return
        async with limiter:
            try:
                await self._shims.reconnect(tenant)
            except TaskdError as exc:
                log.warning("shim %s is dead: %s", tenant.key, exc)
        if tenant.shim.state is State.GONE:
            async with self._busy.hold(tenant.key):
                found = await self._end_unseen(tenant, DIED)
            await self._observer.lost(tenant.key, found)
            return
        task = self._task(tenant)
        self._admit(task)
        await self._greet(task)

    async def _greet(self, task: Task) -> None:
        """Ask a shim of an earlier daemon for its task until it answers."""
        shim = task.shim
        while task.fate is Fate.MADE:
            try:
                state = await task.api.state("", timeout=self._shims.timeouts.load)
            except ttrpc.ConnectionClosed:
                return  # the task is lost, or the daemon ends
            except NotFound:
                if task.fate is not Fate.MADE:
                    return  # it has been deleted meanwhile
                log.warning("shim %s has no task; ending it", task.key)
                task.fate = Fate.LOST
                await self._bury(task, UNKNOWN)
                return
            except TaskdError as exc:
                if shim.state is State.SERVING:
                    shim.state = State.SILENT
                    log.warning("shim %s does not answer: %s", task.key, exc)
                await anyio.sleep(_GREETING_SECONDS)
                continue
            task.process("").pid = state.pid
            if shim.state is State.SILENT:
                shim.state = State.SERVING
                log.warning("shim %s answers again", task.key)
            await self._observer.found(task, state)
            return
