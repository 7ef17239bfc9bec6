"""One running shim and the task in it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress

import anyio

from taskd import ttrpc
from taskd.errors import NotFound, TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary, TaskApi
from taskd.runtime.types import Exit, TaskState

__all__ = ["Shim", "ShimLog"]

log = logging.getLogger(__name__)


class ShimLog:
    """Copies what a shim writes into its bundle's log FIFO to the daemon's log.

    The FIFO is kept open for writing too: a shim whose daemon restarts must neither block nor
    be killed by SIGPIPE, and its log does not end while another of its processes comes and goes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._name = f"{bundle.namespace}/{bundle.id}"
        self._rest = b""
        with suppress(FileExistsError):
            os.mkfifo(bundle.log, 0o700)
        self._fd = os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._write(line)

    def _write(self, line: bytes) -> None:
        if line:
            log.info("shim %s: %s", self._name, line.decode(errors="replace"))

    def close(self) -> None:
        """Take over what is still in the FIFO, and close it. Idempotent."""
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        self._read()
        self._write(self._rest)
        os.close(self._fd)
        self._fd = -1


class Shim:
    """A task as taskd holds it: its bundle, and the connection to the shim that owns it.

    Calls about the task go through `task`. What is here besides is what involves more than one
    call: the shared `wait`, and the end.
    """

    def __init__(
        self,
        bundle: Bundle,
        binary: Binary,
        connection: Connection,
        bootstrap: Bootstrap,
        shim_log: ShimLog,
        task: TaskApi,
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
        # Pid of the init process, as far as the shim has told.
        self.pid = 0
        self._spawn = spawn
        self._waits: dict[str, asyncio.Future[Exit]] = {}
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

    async def wait(self, exec_id: str) -> Exit:
        """Wait for a process to exit. All who wait for one share a single call to the shim."""
        waiting = self._waits.get(exec_id)
        if waiting is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waits[exec_id] = waiting
            self._spawn(self._wait, exec_id, waiting)
        return await asyncio.shield(waiting)

    async def _wait(self, exec_id: str, waiting: asyncio.Future[Exit]) -> None:
        try:
            found = await self.task.wait(exec_id)
        except ttrpc.ConnectionClosed as exc:
            # The exit is found out while the dead shim is cleaned up: see `lost`.
            if self.ending and not self.died:
                self._fail(exec_id, waiting, exc)
        except TaskdError as exc:
            self._fail(exec_id, waiting, exc)
        except BaseException:
            waiting.cancel()
            raise
        else:
            self._waits.pop(exec_id, None)
            if not waiting.done():
                waiting.set_result(found)

    def _fail(self, exec_id: str, waiting: asyncio.Future[Exit], exc: TaskdError) -> None:
        self._waits.pop(exec_id, None)
        if not waiting.done():
            waiting.set_exception(exc)
            # Nobody may be left to hear of it, which is no error.
            waiting.exception()

    async def end(self) -> Exit:
        """Wait until a shim that died has been cleaned up after; what is known of its exit."""
        return await asyncio.shield(self._end)

    def lost(self, found: Exit) -> None:
        """The shim died; tell all who wait what is known of its processes' end."""
        self._end.set_result(found)
        waits, self._waits = self._waits, {}
        for waiting in waits.values():
            if not waiting.done():
                waiting.set_result(found)

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

    async def disconnect(self) -> None:
        """Close the connection and the log; calls in flight fail."""
        self.ending = True
        await self.connection.aclose()
        self.log.close()
