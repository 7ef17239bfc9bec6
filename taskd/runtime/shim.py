"""One running shim and the task in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anyio

from taskd import ttrpc
from taskd.errors import DeadlineExceeded, NotFound, TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary, TaskApi
from taskd.runtime.held import HeldProcess
from taskd.runtime.observer import Observer
from taskd.runtime.shim_log import ShimLog
from taskd.runtime.types import Exit, TaskState

__all__ = ["Process", "Shim"]

log = logging.getLogger(__name__)


class Process:
    """What taskd itself has seen of a process."""

    def __init__(self) -> None:
        self.pid = 0
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


class Shim:
    """A task as taskd holds it: its bundle, and the connection to the shim that owns it.

    Calls about the task go through `task`, except for those that its `observer` is told of, and the
    shared `wait`.
    """

    def __init__(
        self,
        bundle: Bundle,
        binary: Binary,
        connection: Connection,
        bootstrap: Bootstrap,
        shim_log: ShimLog,
        task: TaskApi,
        observer: Observer,
        spawn: Callable[..., object],
    ) -> None:
        self.bundle = bundle
        self.binary = binary
        self.connection = connection
        self.bootstrap = bootstrap
        self.task = task
        self.log = shim_log
        # The daemon itself has begun to end this shim; its disconnection is expected.
        self.ending = False
        # The connection ended, and nobody here had ended it.
        self.died = False
        # Its task is deleted, and whoever saw to that tells what there is left to tell of it.
        self.deleted = False
        # It has not yet answered this daemon, which found it at start-up.
        self.silent = False
        # Its process, once it has told its pid.
        self.held: HeldProcess | None = None
        self._observer = observer
        self._spawn = spawn
        self._processes: dict[str, Process] = {}
        self._waits: dict[str, _Wait] = {}
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def id(self) -> str:
        return self.bundle.id

    async def state(self, exec_id: str, *, timeout: float) -> TaskState:
        """State of a process. A shim that has gone has no processes: `NotFound`."""
        try:
            return await self.task.state(exec_id, timeout=timeout)
        except ttrpc.ConnectionClosed:
            raise NotFound from None

    @property
    def pid(self) -> int:
        """Pid of the init process, as far as the shim has told."""
        return self.process("").pid

    def process(self, exec_id: str) -> Process:
        return self._processes.setdefault(exec_id, Process())

    async def start(self, exec_id: str) -> int:
        """Start a created process; returns its pid."""
        process = self.process(exec_id)
        try:
            with process.starting():
                self._observer.starting(self, exec_id)
                process.pid = await self.task.start(exec_id)
                await self._observer.started(self, exec_id)
        except TaskdError:
            if not process.begun:
                self._observer.not_started(self, exec_id)
            raise
        return process.pid

    async def delete_process(self, exec_id: str) -> Exit:
        """Remove a process that has exited, of whose task this shim and its bundle stay."""
        found = await self.task.delete(exec_id)
        with anyio.CancelScope(shield=True):
            if exec_id:
                await self._observer.exec_deleted(self, exec_id, found)
            else:
                await self._observer.deleted(self, found)
        self._processes.pop(exec_id, None)
        return found

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
                    found = await self.task.wait(exec_id)
                except ttrpc.ConnectionClosed as exc:
                    if self.ending and not self.died:
                        raise
                    # The exit is found out while the dead shim is cleaned up.
                    log.debug("waiting for %s of %s: %s", exec_id, self.id, exc)
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

    async def end(self) -> Exit:
        """Wait until a shim that died has been cleaned up after; what is known of its exit."""
        return await asyncio.shield(self._end)

    def lost(self, found: Exit) -> None:
        """The shim died; tell all who wait what is known of its processes' end."""
        self._end.set_result(found)

    async def shutdown(self, *, timeout: float) -> bool:
        """Ask the shim to end, for at most `timeout` seconds; whether it agreed."""
        with anyio.move_on_after(timeout):
            try:
                await self.task.shutdown()
            except ttrpc.ConnectionClosed:
                return True  # it ended before it could answer
            except TaskdError as exc:
                log.error("shim %s/%s refused to shut down: %s", self.namespace, self.id, exc)
                return False
            return True
        log.error("shim %s/%s did not shut down in %s s", self.namespace, self.id, timeout)
        return False

    async def hold(self) -> None:
        """Learn which process it is: it may have to be killed when it no longer tells."""
        with suppress(TaskdError, OSError):
            held = HeldProcess(await self.task.connect())
            if self.ending or self.died:
                held.release()
            else:
                self.held = held

    async def kill(self, seconds: float) -> bool:
        """Kill its process, if it has told which; False if it has not. Raises OSError."""
        held, self.held = self.held, None
        if held is None:
            return False
        try:
            await held.kill(seconds)
        finally:
            held.release()
        return True

    def release(self) -> None:
        """Let its process be whatever it is."""
        if self.held is not None:
            self.held.release()
            self.held = None

    async def disconnect(self) -> None:
        """Close the connection and the log; calls in flight fail."""
        self.ending = True
        await self.connection.aclose()
        self.log.close()
