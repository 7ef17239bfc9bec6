"""A task as taskd holds it, and who is told of what becomes of it."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import anyio

from taskd import moves, ttrpc
from taskd.errors import DeadlineExceeded, NotFound, TaskdError, Unknown
from taskd.runtime.generation import TaskApi
from taskd.runtime.shim import Shim, State, Tenant
from taskd.runtime.types import CreateOptions, Exit, Key, Status, Stdio, TaskState
from taskd.types import TypedValue

__all__ = ["Fate", "Observer", "Process", "Task", "Watch"]

log = logging.getLogger(__name__)


class Fate(enum.Enum):
    """What has become of a task; set by whoever does it, before anybody is told."""

    MADE = enum.auto()
    DELETED = enum.auto()
    """Whoever has seen to it tells what there is left to tell of it."""
    LOST = enum.auto()
    """Its shim died, or did not know it."""


class Watch:
    """Somebody waits for the exit of a process, to tell of it."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        """It has been told, or will not be."""


class Process:
    """What taskd itself has seen of a process."""

    def __init__(self) -> None:
        self.pid = 0
        self.watch: Watch | None = None
        self.begun = False
        """It was started, or it is not known that this failed."""
        self._starting = 0
        self._settled = anyio.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        before, self.begun = self.begun, True
        self._starting += 1
        try:
            yield
        except (ttrpc.ConnectionClosed, DeadlineExceeded):
            raise
        except TaskdError:
            self.begun = before
            raise
        finally:
            self._starting -= 1
            if not self._starting:
                self._settled.set()
                self._settled = anyio.Event()

    async def settled(self) -> None:
        """Wait until nobody is starting it."""
        if self._starting:
            await self._settled.wait()


class _Wait:
    """A call of Wait that all who wait for a process share."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.scope = anyio.CancelScope()
        self.users = 0


class Task:
    """One task: its processes, and its place in the process of the shim that has made it.

    Calls about it go through `api`, except for those that its `observer` is told of, and the
    shared `wait`.
    """

    def __init__(
        self,
        tenant: Tenant,
        api: TaskApi,
        observer: Observer,
        spawn: Callable[..., object],
    ) -> None:
        self.key = tenant.key
        self.bundle = tenant.bundle
        self.tenant = tenant
        self.api = api
        self.fate = Fate.MADE
        self._observer = observer
        self._spawn = spawn
        self._processes: defaultdict[str, Process] = defaultdict(Process)
        self._waits: dict[str, _Wait] = {}
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        # What its deletion has told.
        self._exit: Exit | None = None

    @property
    def namespace(self) -> str:
        return self.key.namespace

    @property
    def id(self) -> str:
        return self.key.id

    @property
    def shim(self) -> Shim:
        return self.tenant.shim

    @property
    def pid(self) -> int:
        """Pid of the init process, as far as the shim has told."""
        return self.process("").pid

    @property
    def lives(self) -> bool:
        """Whether neither it nor its shim has come to an end, or is about to."""
        return self.fate is Fate.MADE and self.shim.state in (State.SERVING, State.SILENT)

    def process(self, exec_id: str) -> Process:
        return self._processes[exec_id]

    @property
    def watches(self) -> dict[str, Watch]:
        """Those that there are of its processes, by the exec's id."""
        return {name: each.watch for name, each in self._processes.items() if each.watch}

    async def state(self, exec_id: str, *, timeout: float) -> TaskState:
        """State of a process. A shim that has gone has no processes: `NotFound`."""
        try:
            return await self.api.state(exec_id, timeout=timeout)
        except ttrpc.ConnectionClosed:
            raise NotFound from None

    async def exec(self, exec_id: str, spec: TypedValue | None, stdio: Stdio) -> None:
        """Add a process; `spec` is an OCI process as JSON."""
        moves.expect()  # whoever adds one starts it soon
        await self.api.exec(exec_id, spec, stdio)

    async def start(self, exec_id: str) -> int:
        """Start a created process; returns its pid."""
        process = self.process(exec_id)
        try:
            with process.starting():
                self._observer.starting(self, exec_id)
                try:
                    process.pid = await self.api.start(exec_id)
                except ttrpc.ConnectionClosed:
                    process.pid = await self._start_again(exec_id)
                await self._observer.started(self, exec_id)
        except TaskdError:
            if not process.begun:
                self._observer.not_started(self, exec_id)
            raise
        return process.pid

    async def _start_again(self, exec_id: str) -> int:
        """The shim has died while it was starting a process; whoever goes on knows more of it.

        Raises `ttrpc.ConnectionClosed` if nobody does.
        """
        state = await self.api.state(exec_id)
        if state.status is Status.CREATED:
            return await self.api.start(exec_id)
        if not state.pid:
            raise Unknown("the shim died while it was starting it")
        return state.pid

    async def checkpoint(self, path: str, options: TypedValue | None) -> None:
        """Write it down into the folder `path`. When this is over nobody writes there any more."""
        try:
            await self.api.checkpoint(path, options)
        except ttrpc.ConnectionClosed:
            # Whoever goes on, or cleans up, ends what the shim that has died had begun.
            with suppress(TaskdError):
                await self.api.state("")
            if self.fate is Fate.LOST:
                await self.end()
            raise

    async def delete_process(self, exec_id: str) -> Exit:
        """Remove a process that has exited, of whose task the shim and the bundle stay."""
        found = await self.api.delete(exec_id)
        with anyio.CancelScope(shield=True):
            if exec_id:
                await self._observer.exec_deleted(self, exec_id, found)
            else:
                await self.deleted(found)
        self._processes.pop(exec_id, None)
        return found

    async def deleted(self, found: Exit | None) -> None:
        """The shim has deleted it; `found` is its exit, if the shim knew it."""
        self.fate = Fate.DELETED
        self._exit = found
        await self._observer.deleted(self, found)

    async def wait(self, exec_id: str) -> Exit:
        """Wait for a process to exit. All who wait for one share a single call to the shim."""
        waiting = self._waits.get(exec_id)
        if waiting is None:
            waiting = self._waits[exec_id] = _Wait()
            self._spawn(self._wait, exec_id, waiting)
        waiting.users += 1
        try:
            return await asyncio.shield(waiting.answer)
        finally:
            waiting.users -= 1
            if not waiting.users:
                if self._waits.get(exec_id) is waiting:
                    del self._waits[exec_id]
                waiting.scope.cancel()

    async def _wait(self, exec_id: str, waiting: _Wait) -> None:
        answer = waiting.answer
        try:
            with waiting.scope:
                try:
                    found = await self.api.wait(exec_id)
                except ttrpc.ConnectionClosed as exc:
                    if self.fate is Fate.DELETED:
                        found = self._told(exec_id)
                    elif self.fate is not Fate.LOST and self.shim.state is State.ENDING:
                        raise  # by the daemon
                    else:
                        # The exit is found out while the dead shim is cleaned up.
                        log.debug("waiting for %s of %s: %s", exec_id, self.id, exc)
                        found = await self.end()
                except NotFound:
                    if self.fate is not Fate.LOST:
                        raise
                    found = await self.end()
                if not answer.done():
                    answer.set_result(found)
        except TaskdError as exc:
            if not answer.done():
                answer.set_exception(exc)
                # Nobody may be left to hear of it, which is no error.
                answer.exception()
        finally:
            if self._waits.get(exec_id) is waiting:
                del self._waits[exec_id]
            if not answer.done():
                answer.cancel()

    def _told(self, exec_id: str) -> Exit:
        """What its deletion has told of a process. Raises `NotFound`."""
        if exec_id or self._exit is None:
            raise NotFound(f"process {exec_id or self.id}")
        return self._exit

    def close(self) -> None:
        """Once it is deleted: who waits for its processes has waited long enough."""
        for exec_id, waiting in self._waits.items():
            if not waiting.answer.done():
                try:
                    waiting.answer.set_result(self._told(exec_id))
                except NotFound as exc:
                    waiting.answer.set_exception(exc)
                    waiting.answer.exception()
            waiting.scope.cancel()

    async def end(self) -> Exit:
        """Wait until a task that is lost has been cleaned up after; what is known of its exit."""
        return await asyncio.shield(self._end)

    def ended(self, found: Exit) -> None:
        """Tell all who wait what is known of the end of a task that is lost."""
        self._end.set_result(found)


class Observer(Protocol):
    """Is told of each step of each process, before whoever asked for that step.

    An empty `exec_id` means the init process.
    """

    async def created(self, task: Task, options: CreateOptions) -> None:
        """A task was made. It is undone if this raises: the journal does not take it."""

    async def abandoned(self, task: Task, options: CreateOptions, found: Exit | None) -> None:
        """A task that was to be made is gone; `found` is its exit if it had been made already."""

    def starting(self, task: Task, exec_id: str) -> None:
        """A process is about to be started."""

    def not_started(self, task: Task, exec_id: str) -> None:
        """The shim could not start a process."""

    async def started(self, task: Task, exec_id: str) -> None:
        """A process was started; its pid is in `task`."""

    async def exec_deleted(self, task: Task, exec_id: str, found: Exit) -> None:
        """An exec that had exited was removed."""

    async def deleted(self, task: Task, found: Exit | None) -> None:
        """A task was removed; its exit, if the shim knew."""

    async def found(self, task: Task, state: TaskState) -> None:
        """The shim of an earlier daemon has answered."""

    async def lost(self, key: Key, found: Exit) -> None:
        """A task was lost, and cleaned up after; this is what is known of its exit."""
