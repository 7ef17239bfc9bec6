"""What has arrived on one stream and its reader has not taken yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from taskd.errors import TaskdError

__all__ = ["CAPACITY", "Inbox"]

CAPACITY: Final = 64
"""Messages that may wait, as in Go (``streamRecvBufferSize``)."""


class Inbox:
    """A queue for one reader. `room_made` is called when it is no longer full."""

    def __init__(self, room_made: Callable[[Inbox], None]) -> None:
        self._room_made = room_made
        self._messages: deque[bytes] = deque()
        self._ended = False
        # Why the stream ended; None if in good order.
        self._error: TaskdError | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return len(self._messages) >= CAPACITY

    def put(self, message: bytes) -> None:
        self._messages.append(message)
        self._wake()

    def end(self, error: TaskdError | None = None) -> None:
        """Nothing more comes, because of `error`; what has come can still be read."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    def discard(self) -> None:
        """Nobody is going to read this."""
        self.end()
        was_full = self.full
        self._messages.clear()
        if was_full:
            self._room_made(self)

    async def get(self) -> bytes | None:
        """The next message; None at the end. Raises the error that the stream ended with."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            if self._reader is not None:
                raise RuntimeError("a stream is read by one task at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        was_full = self.full
        message = self._messages.popleft()
        if was_full and not self.full:
            self._room_made(self)
        return message

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
