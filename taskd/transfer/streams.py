"""Streams that other calls refer to by a name. Source: containerd's ``core/streaming``,
``plugins/streaming`` and ``core/transfer/streaming``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio

from taskd.codec import MalformedMessage, decode
from taskd.errors import AlreadyExists, Cancelled, NotFound, Unknown
from taskd.message import Message
from taskd.proto.containerd.types.transfer import Data, WindowUpdate
from taskd.types import TypedValue
from taskd.wellknown import pack

__all__ = ["Sender", "Stream", "Streams", "message", "received"]

_log = logging.getLogger(__name__)

PIECE = 32 << 10
"""Bytes in one message, as containerd sends them."""
WINDOW = 4 << 20
"""Bytes that a sender may be ahead of us."""

M = TypeVar("M", bound=Message)

_WAITING = 16
"""Messages that wait for a client to read them, or for us."""


class Stream:
    """Both directions of one client's stream. What a client has sent stays until it is read."""

    def __init__(self) -> None:
        self._to_client, self.outgoing = anyio.create_memory_object_stream[TypedValue](_WAITING)
        self.incoming, self._from_client = anyio.create_memory_object_stream[TypedValue](_WAITING)
        """What serves the stream puts in here what the client sends, and sends it `outgoing`."""

    async def send(self, message: Message) -> None:
        """Raises `Cancelled` if the client has gone, or the stream is closed."""
        try:
            await self._to_client.send(pack(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise Cancelled from None

    async def receive(self) -> TypedValue | None:
        """The next message; None if there are no more."""
        try:
            return await self._from_client.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return None

    def receive_nowait(self) -> TypedValue | None:
        """A message that is there already."""
        try:
            return self._from_client.receive_nowait()
        except (anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            return None

    def close(self) -> None:
        """Send nothing more, and read nothing more; the client is told after what was sent."""
        self._to_client.close()
        self._from_client.close()

    def lost(self) -> None:
        """The client has gone."""
        self.incoming.close()
        self.outgoing.close()


class Streams:
    """The streams that are open, by namespace and name."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Stream] = {}

    @contextmanager
    def opened(self, namespace: str, name: str) -> Iterator[Stream]:
        """A new one, as long as the context is open. Raises `AlreadyExists`."""
        key = namespace, name
        if key in self._open:
            raise AlreadyExists
        stream = self._open[key] = Stream()
        try:
            yield stream
        finally:
            stream.lost()
            stream.close()
            del self._open[key]

    def get(self, namespace: str, name: str) -> Stream:
        """Raises `NotFound`."""
        try:
            return self._open[namespace, name]
        except KeyError:
            raise NotFound from None


def message(value: TypedValue, kind: type[M]) -> M | None:
    """What is in `value` if it is of that kind, and sound."""
    if value.type_url != pack(kind()).type_url:
        return None
    try:
        return decode(kind, value.value)
    except MalformedMessage:
        return None


async def received(stream: Stream) -> AsyncGenerator[bytes]:
    """The bytes that a client sends, to their end, by and by. Raises `Unknown`."""
    window = 0
    while True:
        if window < WINDOW // 2:
            try:
                await stream.send(WindowUpdate(update=WINDOW - window))
                window = WINDOW
            except Cancelled:
                window = WINDOW  # it has sent all: there is no need for more
        value = await stream.receive()
        if value is None:
            return
        pieces = []
        while value is not None:
            data = message(value, Data)
            if data is None:
                _log.warning("ignoring %s in a stream of bytes", value.type_url)
            else:
                pieces.append(data.data)
                window -= len(data.data)
            value = stream.receive_nowait()
        yield b"".join(pieces)


class Sender:
    """Sends bytes to a client, as many as it has room for; use `run` beside it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._room = 0
        self._more = anyio.Event()
        self._gone = False

    async def run(self) -> None:
        """Hear how much the client takes."""
        while (value := await self._stream.receive()) is not None:
            update = message(value, WindowUpdate)
            if update is None:
                _log.warning("ignoring %s of who reads bytes", value.type_url)
                continue
            self._room += max(update.update, 0)
            self._more.set()
        self._gone = True
        self._more.set()

    async def send(self, content: bytes) -> None:
        """Raises `Unknown` if the client has gone."""
        view = memoryview(content)
        while view:
            while self._room <= 0:
                if self._gone:
                    raise Unknown("the stream has ended before everything was sent")
                self._more = anyio.Event()
                await self._more.wait()
            size = min(len(view), PIECE, self._room)
            self._room -= size
            await self._stream.send(Data(data=bytes(view[:size])))
            view = view[size:]
