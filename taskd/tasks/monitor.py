"""The monitor: sees to it that each step of each process is told once, whatever happens.

A shim tells of its processes by itself, but not if it is killed, or if nobody listens for longer
than it tries. So every step is told from here too, when taskd sees it: as the answer to its own
call, as that of the `Wait` that it keeps open at the shim for every process that runs, or, after
both have failed, from what the journal knows to have begun. The journal takes the first.

The events are those of containerd's shims (``runtime/v2/runc/task/service.go``).
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import aclosing, suppress

import anyio
import betterproto2
from anyio.abc import TaskGroup

from taskd.codec import MalformedMessage, decode
from taskd.errors import ResourceExhausted, TaskdError
from taskd.events import Bus, Journal
from taskd.events.ledger import Process
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
from taskd.runtime.bundle import Bundle
from taskd.runtime.client import mount_messages
from taskd.runtime.shim import Shim
from taskd.runtime.types import CreateOptions, Exit, Status, Stdio, TaskState
from taskd.wellknown import pack, timestamp

__all__ = ["Monitor"]

log = logging.getLogger(__name__)

UNSEEN = 255
"""containerd's status for an exit that nobody saw."""

_LAST_WORDS_SECONDS = 1.0
"""How long the exits of execs are awaited once their task is deleted."""
_RETRY_SECONDS = 1.0
_BETWEEN_SECONDS = 0.002

_Events = list[tuple[str, betterproto2.Message]]


class _Watch:
    """A Wait kept open at a shim."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()


class Monitor:
    """Tells of the tasks of all shim managers: their `Observer`. `group` owns its background."""

    def __init__(self, bus: Bus, journal: Journal, group: TaskGroup) -> None:
        self._bus = bus
        self._journal = journal
        self._group = group
        self._watched: dict[tuple[Shim, str], _Watch] = {}
        # Found at start-up, and not watched yet; None once all have been found.
        self._found: list[tuple[Shim, bool]] | None = []

    # --- steps, as they are seen ----------------------------------------------------------

    async def created(self, shim: Shim, options: CreateOptions) -> None:
        event = _created(shim, options.stdio, options)
        await self._bus.publish(shim.namespace, "/tasks/create", pack(event), first_hand=True)
        self._watch(shim, "")
        self._watch_memory(shim)

    async def abandoned(self, shim: Shim, options: CreateOptions, found: Exit | None) -> None:
        if found is not None and found.pid:
            # It had been made, which its shim may have told, or be about to.
            with suppress(ResourceExhausted):
                await self.created(shim, options)
        await self._end(shim.namespace, shim.id, found)

    def starting(self, shim: Shim, exec_id: str) -> None:
        self._watch(shim, exec_id)

    def not_started(self, shim: Shim, exec_id: str) -> None:
        if exec_id:
            self._unwatch(shim, exec_id)

    async def started(self, shim: Shim, exec_id: str) -> None:
        await self._tell(shim.namespace, [_started(shim, exec_id)])

    async def exec_deleted(self, shim: Shim, exec_id: str, found: Exit) -> None:
        await self._exited(shim, exec_id, found)
        self._unwatch(shim, exec_id)
        with suppress(ResourceExhausted):
            await self._journal.retire(shim.namespace, shim.id, exec_id)

    async def deleted(self, shim: Shim, found: Exit | None) -> None:
        shim.deleted = True
        running = {process.id for process in self._running(shim.namespace, shim.id) if process.id}
        with anyio.move_on_after(_LAST_WORDS_SECONDS):
            # The answers to their Waits are on the way: they died before the init process did.
            for exec_id in running:
                if watch := self._watched.get((shim, exec_id)):
                    await watch.ended.wait()
        # First, lest one that comes late takes the end of a deleted process for news.
        for watched, exec_id in list(self._watched):
            if watched is shim:
                self._unwatch(shim, exec_id)
        await self._end(shim.namespace, shim.id, found)

    async def lost(self, bundle: Bundle, found: Exit) -> None:
        await self._end(bundle.namespace, bundle.id, found)

    async def reconcile(self, bundles: Collection[tuple[str, str]]) -> None:
        """Tell the end of all tasks, by namespace and id, of which there is no bundle any more."""
        for namespace, container in self._journal.tasks():
            if (namespace, container) not in bundles:
                await self._end(namespace, container, None)
        found, self._found = self._found, None
        self._group.start_soon(self._catch_up, found or [])

    async def _catch_up(self, found: Iterable[tuple[Shim, bool]]) -> None:
        # Not all at once: clients, who have waited for the daemon, come first.
        for shim, runs in found:
            if not shim.ending and not shim.died:
                self._group.start_soon(self._follow, shim, runs)
                await anyio.sleep(_BETWEEN_SECONDS)

    async def found(self, shim: Shim, state: TaskState) -> None:
        """Tell what an earlier daemon has not, and watch what runs."""
        known = self._journal.processes(shim.namespace, shim.id)
        events: _Events = []
        if not any(process.created for process in known):
            events.append(("/tasks/create", _created(shim, state.stdio)))
        begun = state.status != Status.CREATED
        if begun and not any(process.started for process in known if not process.id):
            events.append(_started(shim, ""))
        await self._tell(shim.namespace, events)
        shim.process("").begun = begun
        runs = begun and state.status != Status.STOPPED
        if self._found is not None:
            self._found.append((shim, runs))
        else:
            await self._follow(shim, runs)

    async def _follow(self, shim: Shim, runs: bool) -> None:
        """Watch the processes of a shim of an earlier daemon."""
        if shim.deleted:
            return
        self._watch(shim, "")
        self._watch_memory(shim)
        for process in self._journal.processes(shim.namespace, shim.id):
            if process.id and process.started and not process.exited:
                shim.process(process.id).pid = process.pid
                self._watch(shim, process.id)
        if runs:
            await self._find_execs(shim)

    async def _find_execs(self, shim: Shim) -> None:
        """Tell and watch the execs of which the journal does not know that they were started."""
        with suppress(TaskdError, MalformedMessage):
            for info in await shim.task.pids():
                if info.info is None:
                    continue
                exec_id = decode(ProcessDetails, info.info.value).exec_id
                if exec_id and not shim.process(exec_id).pid:
                    shim.process(exec_id).pid = info.pid
                    await self._tell(shim.namespace, [_started(shim, exec_id)])
                    self._watch(shim, exec_id)

    # --- exits ----------------------------------------------------------------------------

    def _watch(self, shim: Shim, exec_id: str) -> None:
        if (shim, exec_id) not in self._watched:
            watch = self._watched[shim, exec_id] = _Watch()
            self._group.start_soon(self._await_exit, shim, exec_id, watch)

    def _watch_memory(self, shim: Shim) -> None:
        if not shim.task.tells_oom:
            self._group.start_soon(self._tell_ooms, shim)

    async def _tell_ooms(self, shim: Shim) -> None:
        from taskd.cgroups.v1 import Cgroup  # of use with old shims alone

        # Closed at once, not when somebody collects it: it holds a file.
        with suppress(OSError):
            async with aclosing(Cgroup.of(shim.pid).ooms()) as notices:
                async for _ in notices:
                    event = TaskOom(container_id=shim.id)
                    await self._tell(shim.namespace, [("/tasks/oom", event)])

    def _unwatch(self, shim: Shim, exec_id: str) -> None:
        if watch := self._watched.pop((shim, exec_id), None):
            watch.scope.cancel()

    async def _await_exit(self, shim: Shim, exec_id: str, watch: _Watch) -> None:
        try:
            with watch.scope:
                found = await shim.wait(exec_id)
                await shim.process(exec_id).settled()
                if not shim.died and (exec_id or not shim.deleted):
                    await self._exited(shim, exec_id, found)
        except TaskdError as exc:
            # If the shim has gone, the end of its processes is told by who ends or misses it.
            if not shim.ending and not shim.died:
                log.warning(
                    "waiting for %s of %s/%s: %s",
                    *(exec_id or "the init process", shim.namespace, shim.id, exc),
                )
        finally:
            if self._watched.get((shim, exec_id)) is watch:
                del self._watched[shim, exec_id]
            watch.ended.set()

    async def _exited(self, shim: Shim, exec_id: str, found: Exit) -> None:
        process = shim.process(exec_id)
        if process.begun and not (found.pid or process.pid):
            with suppress(TaskdError):
                process.pid = (await shim.task.state(exec_id)).pid
        pid = found.pid or process.pid
        if not pid:
            return  # it never ran
        known = [
            known
            for known in self._journal.processes(shim.namespace, shim.id)
            if known.id == exec_id and (not exec_id or known.pid == pid)
        ]
        events: _Events = []
        if process.begun and not any(each.started for each in known):
            process.pid = pid
            events.append(_started(shim, exec_id))
        if not any(each.exited for each in known):
            events.append(_exit(shim.id, exec_id, pid, found.status, found.exited_at))
        await self._tell(shim.namespace, events)

    async def _end(self, namespace: str, container: str, found: Exit | None) -> None:
        """Tell the exits of all that has not exited yet, and the deletion of the task."""
        known = self._journal.processes(namespace, container)
        init = [process for process in known if not process.id]
        if not any(process.created for process in init):
            with suppress(ResourceExhausted):
                await self._journal.settle(namespace, container)
            return
        told = next((process for process in init if process.exited), None)
        pid = (found.pid if found else 0) or max(process.pid for process in init)
        if told is not None:
            found = Exit(pid, told.exit_status, told.exited_at)
        elif found is None:
            found = Exit(pid, UNSEEN, time.time_ns())
        events: _Events = [
            _exit(container, process.id, process.pid, UNSEEN, found.exited_at)
            for process in self._running(namespace, container)
            if process.id
        ]
        if told is None:
            status = found.status
            if not status and not any(process.started for process in init):
                status = 128 + signal.SIGKILL  # which is how runtimes delete what never ran
            events.append(_exit(container, "", pid, status, found.exited_at))
        deleted = TaskDelete(
            container_id=container,
            pid=pid,
            exit_status=found.status,
            exited_at=timestamp(found.exited_at),
        )
        await self._tell(namespace, [*events, ("/tasks/delete", deleted)])

    def _running(self, namespace: str, container: str) -> Iterable[Process]:
        return [
            process
            for process in self._journal.processes(namespace, container)
            if process.started and not process.exited
        ]

    # --- telling --------------------------------------------------------------------------

    async def _tell(self, namespace: str, events: _Events) -> None:
        """Publish events in order; what a full disk does not take now, as soon as it does."""
        for number, (topic, event) in enumerate(events):
            try:
                await self._bus.publish(namespace, topic, pack(event), first_hand=True)
            except ResourceExhausted as exc:
                log.error("events wait until there is room: %s", exc)
                self._group.start_soon(self._tell_later, namespace, events[number:])
                return

    async def _tell_later(self, namespace: str, events: _Events) -> None:
        for topic, event in events:
            while True:
                try:
                    await self._bus.publish(namespace, topic, pack(event), first_hand=True)
                    break
                except ResourceExhausted:
                    await anyio.sleep(_RETRY_SECONDS)


def _created(shim: Shim, stdio: Stdio, options: CreateOptions | None = None) -> TaskCreate:
    return TaskCreate(
        container_id=shim.id,
        bundle=str(shim.bundle.path),
        rootfs=mount_messages(options.rootfs if options else ()),
        io=TaskIo(
            stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr, terminal=stdio.terminal
        ),
        checkpoint=options.checkpoint if options else "",
        pid=shim.pid,
    )


def _started(shim: Shim, exec_id: str) -> tuple[str, betterproto2.Message]:
    pid = shim.process(exec_id).pid
    if exec_id:
        event = TaskExecStarted(container_id=shim.id, exec_id=exec_id, pid=pid)
        return "/tasks/exec-started", event
    return "/tasks/start", TaskStart(container_id=shim.id, pid=pid)


def _exit(
    container: str, exec_id: str, pid: int, status: int, exited_at: int
) -> tuple[str, betterproto2.Message]:
    event = TaskExit(
        container_id=container,
        id=exec_id or container,
        pid=pid,
        exit_status=status,
        exited_at=timestamp(exited_at),
    )
    return "/tasks/exit", event
