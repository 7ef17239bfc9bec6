"""The line to a shim, which may go on with another process when the one at its end dies."""

from __future__ import annotations

import asyncio

from taskd import ttrpc
from taskd.errors import DeadlineExceeded
from taskd.runtime.connection import Connection

__all__ = ["Line"]

_REPEATABLE = frozenset(
    ("CloseIO", "Connect", "Delete", "Pids", "ResizePty", "State", "Stats", "Update", "Wait")
)
"""What can be asked for again if nobody knows whether it was done."""


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

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: ttrpc.Metadata | None = None,
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    connection = self.connection
                    sent = self._up
                    try:
                        if connection is None:
                            raise ttrpc.ConnectionClosed
                        return await connection.call(
                            service, method, payload, timeout=timeout, metadata=metadata
                        )
                    except ttrpc.ConnectionClosed:
                        if sent and method not in _REPEATABLE:
                            raise
                        if not await self._goes_on(connection):
                            raise
        except TimeoutError:
            raise DeadlineExceeded from None

    async def _goes_on(self, after: Connection | None) -> bool:
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
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def aclose(self) -> None:
        self._closed = True
        self._tell()
        if self.connection is not None:
            await self.connection.aclose()
