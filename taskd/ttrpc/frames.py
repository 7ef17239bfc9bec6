"""Frames: a header of 10 bytes, and a payload. Bytes in, frames out; no I/O.

Source: ttrpc's ``PROTOCOL.md`` and ``channel.go``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from taskd.errors import Internal, ResourceExhausted

__all__ = [
    "MAX_PAYLOAD",
    "NO_DATA",
    "REMOTE_CLOSED",
    "REMOTE_OPEN",
    "Decoder",
    "Frame",
    "FrameType",
    "OversizedFrame",
    "ProtocolError",
    "check_size",
    "encode",
    "oversized",
]

MAX_PAYLOAD: Final = 4 << 20
"""Bytes of payload that a frame may carry."""

REMOTE_CLOSED: Final = 0x1
"""Flag: the sender sends no more data on this stream."""

REMOTE_OPEN: Final = 0x2
"""Flag of a request: the sender goes on to send data on this stream."""

NO_DATA: Final = 0x4
"""Flag of data: the frame carries no message, not even an empty one."""

_HEADER: Final = struct.Struct(">IIBB")


class ProtocolError(Internal):
    """The peer broke the protocol: the only error that decoding raises."""

    def __init__(self, message: str = "", *, verbatim: bool = True) -> None:
        super().__init__(message, verbatim=verbatim)


class FrameType(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Frame(NamedTuple):
    """One frame; `type` is an int, and not a `FrameType`, because it is read on every call."""

    stream_id: int
    type: int
    flags: int
    payload: bytes


class OversizedFrame(NamedTuple):
    """A frame of more than `MAX_PAYLOAD` bytes, of which only the header was kept."""

    stream_id: int
    type: int
    flags: int
    length: int


def oversized(length: int) -> ResourceExhausted:
    """What is said of a message of `length` bytes (Go: ``OversizedMessageError``)."""
    return ResourceExhausted(
        f"message length {length} exceed maximum message size of {MAX_PAYLOAD}", verbatim=True
    )


def check_size(payload: bytes) -> None:
    """Raise `ResourceExhausted` if `payload` does not fit into a frame."""
    if len(payload) > MAX_PAYLOAD:
        raise oversized(len(payload))


def encode(stream_id: int, frame_type: int, flags: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame. Raises `ResourceExhausted` if `payload` is too long."""
    check_size(payload)
    return _HEADER.pack(len(payload), stream_id, frame_type, flags) + payload


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes are chunked.

    With `any_type`, frames need not be of a `FrameType`: what a server gets of a type that it does
    not know, it passes over.
    """

    def __init__(self, *, any_type: bool = False) -> None:
        self._any_type = any_type
        # Start of a frame whose rest has not arrived yet.
        self._buffer = bytearray()
        # How long the buffer must be before there is something to do.
        self._wanted = _HEADER.size
        # The oversized frame whose payload goes by, and how much of it is still to come.
        self._passing: OversizedFrame | None = None
        self._to_skip = 0

    def feed(self, data: bytes) -> Iterator[Frame | OversizedFrame]:
        """Yield the frames that `data` completes; the iterator must be exhausted.

        An oversized frame is yielded when all of it has gone by. Raises `ProtocolError` at the
        first header that is malformed; the decoder is of no use after that.
        """
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return
            source, self._buffer = self._buffer, bytearray()
        position, end = 0, len(source)
        while True:
            if self._passing is not None:
                skipped = min(self._to_skip, end - position)
                position += skipped
                self._to_skip -= skipped
                if self._to_skip:
                    return
                yield self._passing
                self._passing = None
            if end - position < _HEADER.size:
                self._wanted = _HEADER.size
                break
            length, stream_id, frame_type, flags = _HEADER.unpack_from(source, position)
            if not (self._any_type or FrameType.REQUEST <= frame_type <= FrameType.DATA):
                raise ProtocolError(f"malformed header: unknown message type {frame_type}")
            start = position + _HEADER.size
            if length > MAX_PAYLOAD:
                self._passing = OversizedFrame(stream_id, frame_type, flags, length)
                self._to_skip = length
                position = start
                continue
            stop = start + length
            if stop > end:
                self._wanted = _HEADER.size + length
                break
            position = stop
            yield Frame(stream_id, frame_type, flags, bytes(source[start:stop]))
        if position < end:
            self._buffer += source[position:]

    def feed_eof(self) -> None:
        """Say that no more bytes come. Raises `ProtocolError` if a frame was cut off."""
        if self._buffer or self._passing is not None:
            raise ProtocolError("truncated frame")
