"""The monitor: sees to it that each step of each process is told once, whatever happens.

A shim tells of its processes by itself, but not if it is killed, or if nobody listens for longer
than it tries. So every step is told from here too, when taskd sees it: as the answer to its own
call, as that of the `Wait` that it keeps open at the shim for every process that runs, or, after
both have failed, from what the journal knows to have begun. The journal takes the first.

What has happened cannot be undone because the journal is out of order: its disk is full, somebody
else has it locked, an I/O error. Then it is told later, and of each task in the order in which it
happened; only a damaged journal is given up.

The events are those of containerd's shims (``runtime/v2/runc/task/service.go``).
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial

import anyio
import betterproto2
from anyio.abc import TaskGroup

from taskd.codec import MalformedMessage, decode
from taskd.errors import DataLoss, TaskdError
from taskd.events import Bus, Journal
from taskd.proto.containerd.events import (
    TaskCreate,
    TaskDelete,
    TaskExecStarted,
    TaskExit,
    TaskIo,
    TaskOom,
    TaskStart,
)
from taskd.proto.containerd.runc.v1 import ProcessDetails
from taskd.runtime.client import mount_messages
from taskd.runtime.task import Fate, Process, Task, Watch
from taskd.runtime.types import CreateOptions, Exit, Key, Status, Stdio, TaskState
from taskd.wellknown import pack, timestamp

__all__ = ["Monitor"]

log = logging.getLogger(__name__)

UNSEEN = 255
"""containerd's status for an exit that nobody saw."""

_LAST_WORDS_SECONDS = 1.0
"""How long the exits of execs are awaited once their init process has ended."""
_RETRY_SECONDS = 1.0
_BETWEEN_SECONDS = 0.002

_Step = Callable[[], Awaitable[None]]
"""Tells of what has happened to a task, as far as the journal does not have it. Can be repeated."""
_Event = tuple[str, betterproto2.Message]


class _Steps:
    """What is to be told of a task, one step after the other."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.late: deque[_Step] = deque()
        self.users = 0


class Monitor:
    """Tells of the tasks of all task managers: their `Observer`. `group` owns its background."""

    def __init__(self, bus: Bus, journal: Journal, group: TaskGroup) -> None:
        self._bus = bus
        self._journal = journal
        self._group = group
        self._steps: dict[tuple[str, str], _Steps] = {}
        # Found at start-up, and not watched yet; None once all have been found.
        self._found: list[tuple[Task, bool]] | None = []

    # --- steps, as they are seen ----------------------------------------------------------

    async def created(self, task: Task, options: CreateOptions) -> None:
        event = _created(task, task.pid, options.stdio, options)
        await self._tell_now(task.namespace, task.id, [event])
        self._watch(task, "")
        self._watch_memory(task)

    async def abandoned(self, task: Task, options: CreateOptions, found: Exit | None) -> None:
        if found is not None and found.pid:
            # It had been made, which its shim may have told, or be about to.
            event = _created(task, found.pid, options.stdio, options)
            with suppress(TaskdError):
                await self._tell_now(task.namespace, task.id, [event])
        await self._end(task.namespace, task.id, found)

    def starting(self, task: Task, exec_id: str) -> None:
        self._watch(task, exec_id)

    def not_started(self, task: Task, exec_id: str) -> None:
        if exec_id:
            self._unwatch(task, exec_id)

    async def started(self, task: Task, exec_id: str) -> None:
        await self._tell(task, [_started(task, exec_id)])

    async def exec_deleted(self, task: Task, exec_id: str, found: Exit) -> None:
        await self._exited(task, exec_id, found, retire=True)
        self._unwatch(task, exec_id)

    async def deleted(self, task: Task, found: Exit | None) -> None:
        await self._hear_execs(task)
        # First, lest one that comes late takes the end of a deleted process for news.
        for exec_id in task.watches:
            self._unwatch(task, exec_id)
        await self._end(task.namespace, task.id, found, answered=found is not None)

    async def lost(self, key: Key, found: Exit) -> None:
        await self._end(key.namespace, key.id, found)

    async def reconcile(self, bundles: Collection[tuple[str, str]]) -> None:
        """Tell the end of all tasks, by namespace and id, of which there is no bundle any more."""
        for namespace, container in self._journal.tasks():
            if (namespace, container) not in bundles:
                await self._end(namespace, container, None)
        found, self._found = self._found, None
        self._group.start_soon(self._catch_up, found or [])

    async def _catch_up(self, found: Iterable[tuple[Task, bool]]) -> None:
        # Not all at once: clients, who have waited for the daemon, come first.
        for task, runs in found:
            if task.lives:
                self._group.start_soon(self._follow, task, runs)
                await anyio.sleep(_BETWEEN_SECONDS)

    async def found(self, task: Task, state: TaskState) -> None:
        """Tell what an earlier daemon has not, and watch what runs."""
        begun = state.status != Status.CREATED

        async def tell() -> None:
            known = self._journal.processes(task.namespace, task.id)
            if not any(process.created for process in known):
                await self._publish(task.namespace, _created(task, state.pid, state.stdio))
            if begun and not any(process.started for process in known if not process.id):
                await self._publish(task.namespace, _started(task, ""))

        await self._surely(task.namespace, task.id, tell)
        task.process("").begun = begun
        runs = begun and state.status != Status.STOPPED
        if self._found is not None:
            self._found.append((task, runs))
        else:
            await self._follow(task, runs)

    async def _follow(self, task: Task, runs: bool) -> None:
        """Watch the processes of a shim of an earlier daemon."""
        if task.fate is Fate.DELETED:
            return
        self._watch(task, "")
        self._watch_memory(task)

        async def watch_execs() -> None:
            for process in self._journal.processes(task.namespace, task.id):
                if process.id and process.started and not process.exited:
                    task.process(process.id).pid = process.pid
                    self._watch(task, process.id)

        await self._surely(task.namespace, task.id, watch_execs)
        if runs:
            await self._find_execs(task)

    async def _find_execs(self, task: Task) -> None:
        """Tell and watch the execs of which the journal does not know that they were started."""
        with suppress(TaskdError, MalformedMessage):
            for info in await task.api.pids():
                if info.info is None:
                    continue
                exec_id = decode(ProcessDetails, info.info.value).exec_id
                if exec_id and not task.process(exec_id).pid:
                    task.process(exec_id).pid = info.pid
                    await self._tell(task, [_started(task, exec_id)])
                    self._watch(task, exec_id)

    # --- exits ----------------------------------------------------------------------------

    def _watch(self, task: Task, exec_id: str) -> None:
        process = task.process(exec_id)
        if process.watch is None:
            process.watch = Watch()
            self._group.start_soon(self._await_exit, task, exec_id, process, process.watch)

    def _watch_memory(self, task: Task) -> None:
        if not task.api.tells_oom:
            self._group.start_soon(self._tell_ooms, task)

    async def _tell_ooms(self, task: Task) -> None:
        from taskd import cgroups  # of use with old shims alone

        # Closed at once, not when somebody collects it: it holds a file.
        with suppress(OSError):
            async with aclosing(cgroups.of(task.pid).ooms()) as notices:
                async for _ in notices:
                    await self._tell(task, [("/tasks/oom", TaskOom(container_id=task.id))])

    def _unwatch(self, task: Task, exec_id: str) -> None:
        process = task.process(exec_id)
        if process.watch is not None:
            process.watch.scope.cancel()
            process.watch = None

    async def _await_exit(self, task: Task, exec_id: str, process: Process, watch: Watch) -> None:
        try:
            with watch.scope:
                found = await task.wait(exec_id)
                await process.settled()
                if not exec_id:
                    await self._hear_execs(task)
                if task.fate is Fate.MADE or (exec_id and task.fate is Fate.DELETED):
                    await self._exited(task, exec_id, found)
        except TaskdError as exc:
            # If the shim has gone, the end of its processes is told by who ends or misses it.
            if task.lives:
                log.warning(
                    "waiting for %s of %s/%s: %s",
                    *(exec_id or "the init process", task.namespace, task.id, exc),
                )
        finally:
            if process.watch is watch:
                process.watch = None
            watch.ended.set()

    async def _hear_execs(self, task: Task) -> None:
        """Let the exits of what runs beside an init process that has ended be told before its own.

        Shims tell them first, and the answers to their Waits are on the way. Where processes share
        a pid namespace the shim kills them only once the init process has ended.
        """
        with anyio.move_on_after(_LAST_WORDS_SECONDS):
            for exec_id, watch in task.watches.items():
                if exec_id:
                    await watch.ended.wait()

    async def _exited(self, task: Task, exec_id: str, found: Exit, *, retire: bool = False) -> None:
        """Tell the exit of a process; `retire` says that it was removed, too."""
        process = task.process(exec_id)
        if process.begun and not (found.pid or process.pid):
            with suppress(TaskdError):
                process.pid = (await task.api.state(exec_id)).pid
        pid = process.pid = found.pid or process.pid
        started = _started(task, exec_id) if process.begun else None
        exited = _exit(task.id, exec_id, pid, found.status, found.exited_at)

        async def tell() -> None:
            processes = self._journal.processes(task.namespace, task.id)
            if not any(each.created for each in processes):
                return  # its task's end has been told, which a shim may do while nobody listens
            known = [
                each
                for each in processes
                if each.id == exec_id and (not exec_id or each.pid == pid)
            ]
            if started is not None and not any(each.started for each in known):
                await self._publish(task.namespace, started)
            if not any(each.exited for each in known):
                await self._publish(task.namespace, exited)

        async def settle() -> None:
            if pid:  # else it never ran
                await tell()
            if retire:
                await self._journal.retire(task.namespace, task.id, exec_id)

        await self._surely(task.namespace, task.id, settle)

    async def _end(
        self, namespace: str, container: str, found: Exit | None, *, answered: bool = False
    ) -> None:
        """Tell the exits of all that has not exited yet, and the deletion of the task.

        If the shim has `answered` its Delete, that is what the deletion tells, as in containerd; or
        else what has been told of the exit, which is better than what was found out afterwards.
        """
        step = partial(self._tell_end, namespace, container, found, time.time_ns(), answered)
        await self._surely(namespace, container, step)

    async def _tell_end(
        self, namespace: str, container: str, found: Exit | None, now: int, answered: bool
    ) -> None:
        known = self._journal.processes(namespace, container)
        init = [process for process in known if not process.id]
        if not any(process.created for process in init):
            await self._journal.settle(namespace, container)
            return
        told = next((process for process in init if process.exited), None)
        pid = (found.pid if found else 0) or max(process.pid for process in init)
        if told is not None and not answered:
            found = Exit(pid, told.exit_status, told.exited_at)
        elif found is None:
            found = Exit(pid, UNSEEN, now)
        for process in known:
            if process.id and process.started and not process.exited:
                event = _exit(container, process.id, process.pid, UNSEEN, found.exited_at)
                await self._publish(namespace, event)
        if told is None:
            status = found.status
            if not status and not any(process.started for process in init):
                status = 128 + signal.SIGKILL  # which is how runtimes delete what never ran
            await self._publish(namespace, _exit(container, "", pid, status, found.exited_at))
        deleted = TaskDelete(
            container_id=container,
            pid=pid,
            exit_status=found.status,
            exited_at=timestamp(found.exited_at),
        )
        await self._publish(namespace, ("/tasks/delete", deleted))

    # --- telling --------------------------------------------------------------------------

    async def _publish(self, namespace: str, event: _Event) -> None:
        topic, message = event
        await self._bus.publish(namespace, topic, pack(message), first_hand=True)

    async def _tell(self, task: Task, events: Iterable[_Event]) -> None:
        """Publish events of a task."""
        await self._surely(
            task.namespace, task.id, partial(self._publish_all, task.namespace, events)
        )

    async def _publish_all(self, namespace: str, events: Iterable[_Event]) -> None:
        for event in events:
            await self._publish(namespace, event)

    async def _tell_now(self, namespace: str, container: str, events: Iterable[_Event]) -> None:
        """Publish events of a task after what is still to be told of it, or raise why not."""
        async with self._steps_of(namespace, container) as steps:
            await self._tell_late(steps)
            await self._publish_all(namespace, events)

    async def _surely(self, namespace: str, container: str, step: _Step) -> None:
        """Take a step; if the journal does not let it be taken now, as soon as it does.

        Raises `DataLoss`.
        """
        async with self._steps_of(namespace, container) as steps:
            if not steps.late:
                try:
                    await step()
                    return
                except DataLoss:
                    raise
                except TaskdError as exc:
                    log.error(
                        "events of %s/%s wait until the journal takes them: %s",
                        *(namespace, container, exc),
                    )
                self._group.start_soon(self._keep_trying, namespace, container)
            steps.late.append(step)

    async def _keep_trying(self, namespace: str, container: str) -> None:
        late = True
        while late:
            await anyio.sleep(_RETRY_SECONDS)
            async with self._steps_of(namespace, container) as steps:
                with suppress(TaskdError):
                    await self._tell_late(steps)
                late = bool(steps.late)

    async def _tell_late(self, steps: _Steps) -> None:
        while steps.late:
            try:
                await steps.late[0]()
            except DataLoss as exc:
                log.error("events are lost: %s", exc)
            steps.late.popleft()

    @asynccontextmanager
    async def _steps_of(self, namespace: str, container: str) -> AsyncIterator[_Steps]:
        """A task's steps, for one at a time, whoever has gone away."""
        steps = self._steps.setdefault((namespace, container), _Steps())
        steps.users += 1
        try:
            with anyio.CancelScope(shield=True):
                async with steps.lock:
                    yield steps
        finally:
            steps.users -= 1
            if not steps.users and not steps.late:
                del self._steps[namespace, container]


def _created(task: Task, pid: int, stdio: Stdio, options: CreateOptions | None = None) -> _Event:
    event = TaskCreate(
        container_id=task.id,
        bundle=str(task.bundle.path),
        rootfs=mount_messages(options.rootfs if options else ()),
        io=TaskIo(
            stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal
        ),
        checkpoint=options.checkpoint if options else "",
        pid=pid,
    )
    return "/tasks/create", event


def _started(task: Task, exec_id: str) -> _Event:
    pid = task.process(exec_id).pid
    if exec_id:
        event = TaskExecStarted(container_id=task.id, exec_id=exec_id, pid=pid)
        return "/tasks/exec-started", event
    return "/tasks/start", TaskStart(container_id=task.id, pid=pid)


def _exit(container: str, exec_id: str, pid: int, status: int, exited_at: int) -> _Event:
    event = TaskExit(
        container_id=container,
        id=exec_id or container,
        pid=pid,
        exit_status=status,
        exited_at=timestamp(exited_at),
    )
    return "/tasks/exit", event
