"""A client that says on the wire whatever a test wants it to; its HTTP/2 is h2's."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame

__all__ = ["Answer", "Peer", "framed"]

SECONDS = 20.0


def framed(message: bytes, *, compressed: bool = False, size: int | None = None) -> bytes:
    return struct.pack(">?I", compressed, len(message) if size is None else size) + message


def _fields(path: str, method: str = "POST") -> list[tuple[str, str]]:
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]


@dataclass
class Answer:
    """What there is of an answer so far."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers["grpc-status"])

    @property
    def words(self) -> str:
        return self.headers.get("grpc-message", "")


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.answers: dict[int, Answer] = {}
        self.pongs = 0
        self.ended = False
        """The server has closed the connection, or said that it will."""
        self.reads = True
        """Makes room for more of what it has been sent."""
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def on(cls, path: Path, settings: Mapping[int, int] | None = None) -> AsyncIterator[Peer]:
        peer = cls(*await asyncio.open_unix_connection(str(path)))
        if settings:
            peer.h2.local_settings.update(settings)
            peer.h2.local_settings.acknowledge()
        peer.h2.initiate_connection()
        peer.flush()
        try:
            yield peer
        finally:
            peer._writer.close()

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        """Bytes past h2."""
        self._writer.write(data)

    def give_up(self, path: str, count: int) -> None:
        """As many calls, each of which is whole, and reset at once."""
        # Past h2, which would take its time; so nothing is to get into the table of headers.
        block = Encoder().encode([(*each, True) for each in _fields(path)])
        for _ in range(count):
            stream_id = self.h2.get_next_available_stream_id()
            self.h2.highest_outbound_stream_id = stream_id
            headers = HeadersFrame(stream_id, block, flags=["END_HEADERS"])
            data = DataFrame(stream_id, framed(b""), flags=["END_STREAM"])
            reset = RstStreamFrame(stream_id, error_code=8)
            self.write(b"".join(each.serialize() for each in (headers, data, reset)))

    def open(
        self, path: str, *fields: tuple[str, str | bytes], end: bool = False, method: str = "POST"
    ) -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream_id,
            [*_fields(path, method), *fields],
            end_stream=end,
        )
        self.answers[stream_id] = Answer()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool = True, padding: int = 0) -> None:
        """As far as the windows allow."""
        self.h2.send_data(stream_id, data, end_stream=end, pad_length=padding or None)

    async def call(self, path: str, message: bytes, *fields: tuple[str, str | bytes]) -> Answer:
        """One whole unary call."""
        stream_id = self.open(path, *fields)
        self.send(stream_id, framed(message))
        return await self.answer(stream_id)

    async def answer(self, stream_id: int) -> Answer:
        """That of a stream, when it is whole."""
        found = self.answers[stream_id]
        await self.until(lambda: found.ended or found.reset is not None)
        return found

    async def until(self, condition) -> None:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(SECONDS):
            while not condition():
                assert not self.ended, "the server has ended the connection"
                await self.receive()

    async def closed(self) -> None:
        """Return when the server has closed the connection."""
        async with asyncio.timeout(SECONDS):
            with suppress(ConnectionResetError):  # it has not read all
                while await self._reader.read(1 << 16):
                    pass

    async def receive(self) -> None:
        """Take what comes next."""
        self.flush()
        data = await self._reader.read(1 << 16)
        if not data:
            self.ended = True
            return
        for event in self.h2.receive_data(data):
            match event:
                case ResponseReceived() | TrailersReceived():
                    self.answers[event.stream_id].headers.update(dict(event.headers))
                case DataReceived():
                    self.answers[event.stream_id].data += event.data
                    if self.reads:
                        self.h2.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                case StreamEnded():
                    self.answers[event.stream_id].ended = True
                case StreamReset():
                    self.answers[event.stream_id].reset = event.error_code
                case PingAckReceived():
                    self.pongs += 1
                case ConnectionTerminated():
                    self.ended = True
        self.flush()
