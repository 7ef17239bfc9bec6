"""grpclib's protocol layer on the engine that is chosen, for both sides.

What grpclib's leaves out is added here: what sending leads to is heard of, events that are nobody's
business are passed over, and a connection that has ended refuses new streams.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from grpclib import protocol
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from h2.connection import ConnectionState
from h2.events import Event, ResponseReceived, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError as H2ProtocolError
from h2.exceptions import TooManyStreamsError
from h2.settings import SettingCodes

from taskd.grpc import engine

__all__ = ["Connection", "Headers", "Processor", "Protocol", "decoded"]

log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


def decoded(fields: Any) -> Headers:
    """Header fields as text, whatever bytes they are."""
    return [(name.decode("latin-1"), value.decode(errors="replace")) for name, value in fields]


class _Sparing:
    """Writes a line to the log at most once in a while, however often there is cause to."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next = 0.0
        self._passed_over = 0

    def warning(self, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._passed_over += 1
            return
        if self._passed_over:
            text += f" ({self._passed_over} more like it since the last such line)"
        self._next, self._passed_over = now + self._seconds, 0
        log.warning(text, *arguments)


_sparing = _Sparing()


class _Wire:
    """A transport, as streams have it: each write is followed by what it has led to."""

    def __init__(self, transport: asyncio.Transport, engine: Any) -> None:
        self._transport = transport
        self._engine = engine
        self.process: Callable[[Event], None]

    def write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)
        for event in self._engine.late_events():
            self.process(event)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)


class Connection(protocol.Connection):
    def __init__(self, transport: asyncio.Transport, config: Configuration, *, client: bool):
        self.engine = made = engine.connection(client=client)
        self.wire = _Wire(transport, made)
        super().__init__(made, cast(asyncio.Transport, self.wire), config=config)
        self.ended = False

    @property
    def header_limit(self) -> int | None:
        """Bytes of headers that the peer takes at once, if it has said so."""
        found: int | None = self.engine.remote_settings.get(SettingCodes.MAX_HEADER_LIST_SIZE)
        return found

    @property
    def ended_by_engine(self) -> bool:
        """Nothing can be sent any more."""
        ended: bool = self.engine.state_machine.state is ConnectionState.CLOSED
        return ended

    def room(self, stream_id: int) -> int:
        """Bytes that can be sent on a stream at once; 0 if it has been closed."""
        engine = self.engine
        try:
            window: int = engine.local_flow_control_window(stream_id)
        except H2ProtocolError:
            return 0
        frame: int = engine.max_outbound_frame_size
        return min(window, frame)

    def create_stream(self, **options: Any) -> protocol.Stream:
        """Raises StreamTerminatedError if the connection has ended."""
        if self.is_closing():
            raise StreamTerminatedError("Connection lost")
        return _Stream(self, self._connection, cast(asyncio.Transport, self.wire), **options)

    def flush(self) -> None:
        self.wire.write(self._connection.data_to_send())

    def is_closing(self) -> bool:
        return self.ended or self.wire.is_closing()

    def close(self) -> None:
        if self.ended:
            return
        self.ended = True
        if not self.wire.is_closing():
            # Why it ends, if the engine has something to say of that.
            self.flush()
        transport = self.wire
        super().close()
        self._transport = cast(asyncio.Transport, transport)  # those that still ask find it closed
        self.write_ready.set()


class _Stream(protocol.Stream):
    async def send_request(
        self, headers: Headers, end_stream: bool = False, *, _processor: protocol.EventsProcessor
    ) -> Callable[[], None]:
        """grpclib's, for connections that end while it waits."""
        while True:
            await self.connection.write_ready.wait()
            if self.connection.is_closing():
                raise StreamTerminatedError("Connection lost")
            try:
                stream_id = self._h2_connection.get_next_available_stream_id()
                self._h2_connection.send_headers(stream_id, headers, end_stream=end_stream)
            except TooManyStreamsError:
                self.connection.stream_close_waiter.clear()
                await self.connection.stream_close_waiter.wait()
                continue
            except H2ProtocolError as exc:
                raise StreamTerminatedError("Connection lost") from exc
            self.init_stream(stream_id, self.connection)
            release_stream = _processor.register(self)
            self._transport.write(self._h2_connection.data_to_send())
            self.connection.headers_send_process()
            return release_stream

    # That the peer has closed a stream is told in grpclib's words, not in h2's.

    async def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        try:
            await super().send_headers(headers, end_stream)
        except H2ProtocolError as exc:
            raise StreamTerminatedError("Stream closed") from exc

    async def send_data(self, data: bytes, end_stream: bool = False) -> None:
        try:
            await super().send_data(data, end_stream)
        except H2ProtocolError as exc:
            raise StreamTerminatedError("Stream closed") from exc

    async def end(self) -> None:
        try:
            await super().end()
        except H2ProtocolError as exc:
            raise StreamTerminatedError("Stream closed") from exc


class Processor(protocol.EventsProcessor):
    """Hands events to the streams that they are of."""

    connection: Connection

    def process(self, event: Event) -> None:
        # The dictionary goes when the connection is closed.
        processors = getattr(self, "processors", None)
        if processors is not None and (found := processors.get(event.__class__)):
            found(event)

    def process_response_received(self, event: ResponseReceived) -> None:
        event.headers = cast(Any, decoded(event.headers))
        super().process_response_received(event)

    def process_stream_reset(self, event: StreamReset) -> None:
        """A server that has answered may say that it does not want the rest (RFC 9113, 8.1).

        grpclib's own would take the answer, which has come just before, for lost.
        """
        stream = self.streams.get(event.stream_id)
        if (
            stream is None
            or event.error_code
            or ("grpc-status", "0") not in (stream.trailers or ())
        ):
            super().process_stream_reset(event)
        else:
            stream.window_updated.set()  # who still sends finds out

    def process_trailers_received(self, event: TrailersReceived) -> None:
        event.headers = cast(Any, decoded(event.headers))
        super().process_trailers_received(event)


class Protocol(protocol.H2Protocol):
    """A connection of a client's, and, with another processor, of a server's."""

    client = True
    connection: Connection
    lost: asyncio.Event
    """Set when the connection has ended."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lost = asyncio.Event()
        self.connection = Connection(
            cast(asyncio.Transport, transport), self.config, client=self.client
        )
        self.processor = self.make_processor()
        self.connection.wire.process = self.processor.process
        self.connection.flush()
        self.connection.initialize()

    def make_processor(self) -> Processor:
        return Processor(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.connection.feed(data)
        except H2ProtocolError as exc:
            self._complain(str(exc))
            return
        for event in events:
            self.processor.process(event)
        self.connection.flush()
        if self.connection.ended_by_engine:
            self._complain(self.connection.engine.complaint)

    def _complain(self, words: str) -> None:
        """End the connection, with a word about the peer if it is to blame."""
        if words:
            _sparing.warning("a connection is closed, since its peer broke HTTP/2: %s", words)
        self.processor.close("Protocol error" if words else "Connection closed")

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.lost.set()
