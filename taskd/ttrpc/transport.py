"""What both ends share: a protocol state machine on an asyncio transport."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Final, cast

from taskd.errors import DeadlineExceeded, ResourceExhausted
from taskd.ttrpc.connection import Connection
from taskd.ttrpc.events import ConnectionEnded, Event
from taskd.ttrpc.inbox import Inbox

__all__ = ["Endpoint"]

logger = logging.getLogger("taskd.ttrpc")

_FULL_SECONDS: Final = 1.0
"""How long a full stream may hold up its connection, as in Go (``stream.receive``)."""

_UNSENT_BYTES: Final = 16384
"""What may wait to be sent before streams wait, too.

asyncio's own 65,536 are too many for small messages: from Python 3.12 on it adds up at each write
all that wait, one by one.
"""


class Endpoint(asyncio.Protocol):
    """One end of a connection: reads into `connection`, writes what that wants written.

    ttrpc has no flow control of its own: a stream that nobody reads stops the whole connection
    for a second, and is failed then.
    """

    # Whether the peer must read what we wrote before we read on.
    _reads_while_writing_is_paused = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = "nobody"
        self._writable = asyncio.Event()
        self._writable.set()
        # Streams that are full, and the timers that end them.
        self._full: dict[Inbox, asyncio.TimerHandle] = {}
        # Nothing more is done with what arrives; the socket may still be open.
        self._ended = False
        self._lost = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._connection.closed

    async def wait_closed(self) -> None:
        """Return when the connection is gone, for whatever reason."""
        await self._lost.wait()

    # What the two ends do differently.

    def _handle(self, event: Event) -> None:
        raise NotImplementedError

    def _fail_all(self) -> None:
        """The connection has ended: nothing comes any more for what is under way."""
        raise NotImplementedError

    def _fail_full(self, inbox: Inbox, error: ResourceExhausted) -> None:
        """Fail the stream that nobody reads."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        self._peer = _describe_peer(transport)

    def data_received(self, data: bytes) -> None:
        for event in self._connection.receive_data(data):
            if type(event) is ConnectionEnded:
                self._end(event)
            else:
                self._handle(event)
        self._flush()

    def eof_received(self) -> None:
        for event in self._connection.receive_eof():
            if type(event) is ConnectionEnded:
                self._end(event)
        self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            logger.debug("connection with %s lost: %s", self._peer, exc)
        # To abort a transport that has gone would make asyncio lose it once more.
        self._transport = None
        self.eof_received()
        self._writable.set()
        self._lost.set()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._regulate_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        self._regulate_reading()

    # For streams and calls

    def _flush(self) -> None:
        transport = self._transport
        for frame in self._connection.data_to_send():
            if transport is not None:
                transport.write(frame)

    async def _drain(self, deadline: float | None = None) -> None:
        """Wait until the peer has read enough for more to be written.

        Raises `DeadlineExceeded` if it has not by `deadline`, in the loop's time.
        """
        if self._writable.is_set():
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._writable.wait()
        except TimeoutError:
            raise DeadlineExceeded from None

    def _deliver(self, inbox: Inbox, payload: bytes | None, end: bool) -> None:
        if payload is not None:
            inbox.put(payload)
        if end:
            inbox.end()
        elif inbox.full and inbox not in self._full:
            self._full[inbox] = self._loop.call_later(_FULL_SECONDS, self._overflow, inbox)
            self._regulate_reading()

    def _room_made(self, inbox: Inbox) -> None:
        timer = self._full.pop(inbox, None)
        if timer is not None:
            timer.cancel()
            self._regulate_reading()

    # Ends

    def _abort(self) -> None:
        """Hang up without waiting for the peer to read the rest."""
        if self._ended:
            return
        self._ended = True
        self._connection.close()
        self._fail_all()
        for timer in self._full.values():
            timer.cancel()
        self._full.clear()
        if self._transport is not None:
            self._transport.abort()

    def _end(self, event: ConnectionEnded) -> None:
        if event.reason is not None:
            logger.warning("connection with %s ended: %s", self._peer, event.reason)
        self._flush()
        self._abort()

    def _overflow(self, inbox: Inbox) -> None:
        self._fail_full(inbox, ResourceExhausted("ttrpc: stream buffer full", verbatim=True))
        self._flush()
        self._room_made(inbox)

    def _regulate_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        stuck = not self._writable.is_set() and not self._reads_while_writing_is_paused
        if self._full or stuck:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _describe_peer(transport: asyncio.BaseTransport) -> str:
    sock = transport.get_extra_info("socket")
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, _, _ = struct.unpack("3i", credentials)
    except (AttributeError, OSError):
        return "its peer"
    return f"pid {pid}"
