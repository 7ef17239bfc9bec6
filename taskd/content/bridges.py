"""Files for worker threads, whose bytes come from the event loop or go there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from io import RawIOBase
from typing import TYPE_CHECKING

from anyio import from_thread

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["FromLoop", "Sink", "ToLoop"]

Sink = Callable[[bytes], Coroutine[object, object, None]]


class ToLoop(RawIOBase):
    """A file that a thread writes to, and the event loop gets the bytes of."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        from_thread.run(self._sink, bytes(data))
        return memoryview(data).nbytes


class FromLoop(RawIOBase):
    """A file that a thread reads, and the event loop has the bytes of."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._piece:
            piece = from_thread.run(self._next)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._piece))
        target[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)
