"""The line to a shim, which may go on with another process when the one at its end dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskd import ttrpc
from taskd.errors import DeadlineExceeded
from taskd.runtime.connection import Connection

__all__ = ["Line"]

_REPEATABLE = frozenset(
    (
        *("CloseIO", "Connect", "Delete", "Pids", "ResizePty", "State", "Stats", "Update", "Wait"),
        *("PingSandbox", "Platform", "SandboxMetrics", "SandboxStatus", "StartSandbox"),
        *("StopSandbox", "WaitSandbox"),
    )
)
"""What can be asked for again if nobody knows whether it was done."""
_LASTING = frozenset(("Wait", "WaitSandbox"))
"""What may be under way for as long as a container lives."""


class Line:
    """A connection to one process after another, each of which goes on where the last one died.

    While there is none calls wait. One that was under way is repeated if that does no harm; or else
    it fails with `ttrpc.ConnectionClosed`, like all others once nobody goes on.
    """

    def __init__(self, connection: Connection | None) -> None:
        """Without a connection, the process at its end has died already."""
        self.connection = connection
        self._changed = asyncio.Event()
        self._up = connection is not None
        self._closed = False
        # Calls wait, though there is a process.
        self._held = False
        # Calls under way that are soon answered.
        self._brief = 0

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: ttrpc.Metadata | None = None,
    ) -> bytes:
        # Only what waits for a process has a clock here: the connection has its own, and two for
        # each call would be a tenth of it.
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            if self._held and method not in _LASTING:
                async with _until(deadline):
                    while self._held:
                        await self._changed.wait()
            connection = self.connection
            sent = self._up
            left = None if deadline is None else deadline - loop.time()
            try:
                if connection is None:
                    raise ttrpc.ConnectionClosed
                return await self._ask(connection, service, method, payload, left, metadata)
            except ttrpc.ConnectionClosed:
                if sent and method not in _REPEATABLE:
                    raise
                async with _until(deadline):
                    if not await self.goes_on(connection):
                        raise

    async def _ask(
        self,
        connection: Connection,
        service: str,
        method: str,
        payload: bytes,
        timeout: float | None,
        metadata: ttrpc.Metadata | None,
    ) -> bytes:
        """Have one process answer."""
        brief = method not in _LASTING
        self._brief += brief
        try:
            return await connection.call(
                service, method, payload, timeout=timeout, metadata=metadata
            )
        finally:
            self._brief -= brief
            if self._held and not self._brief:
                self._tell()

    async def hold(self) -> None:
        """Have calls wait from now on, and wait until those under way have been answered.

        They go on with `release`, or when there is another process.
        """
        self._held = True
        while self._brief and not self._closed:
            await self._changed.wait()

    def release(self) -> None:
        self._held = False
        self._tell()

    async def goes_on(self, after: Connection | None) -> bool:
        """Wait for the next process; whether there is one."""
        while not self._closed and self.connection is after:
            await self._changed.wait()
        return not self._closed

    async def wait_lost(self) -> None:
        """Return when the process at the end of the line has gone, or `aclose` was called."""
        if self.connection is not None:
            await self.connection.wait_closed()
        self._up = False

    async def wait_closed(self) -> None:
        """Return when nobody goes on."""
        while not self._closed:
            await self._changed.wait()

    def go_on(self, connection: Connection) -> None:
        """There is another process."""
        self.connection = connection
        self._up = True
        self._held = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def aclose(self) -> None:
        self._closed = True
        self._held = False
        self._tell()
        if self.connection is not None:
            await self.connection.aclose()


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    """Raise `DeadlineExceeded` at that time, which is the event loop's."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded from None
