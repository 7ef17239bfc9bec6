"""The other end of a connection, spoken by hand, so that it can break the protocol."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self

from taskd.ttrpc.frames import Decoder, Frame, OversizedFrame, encode
from taskd.ttrpc.messages import Request, Response

__all__ = ["PATIENCE", "Peer", "call", "header"]

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""


def header(length: int, stream_id: int, kind: int, flags: int = 0) -> bytes:
    return length.to_bytes(4) + stream_id.to_bytes(4) + bytes((kind, flags))


def call(stream_id: int, method: str = "Echo", payload: bytes = b"", **rest: int) -> bytes:
    """The frame of a unary call."""
    return encode(stream_id, 1, 0, Request("test", method, payload, **rest).encode())


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._frames: list[Frame | OversizedFrame] = []

    @classmethod
    async def on(cls, sock: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=sock))

    async def write(self, *data: bytes) -> None:
        for part in data:
            self._writer.write(part)
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    def write_eof(self) -> None:
        self._writer.write_eof()

    async def frame(self) -> Frame:
        """The next frame. Raises EOFError if there is none any more."""
        async with asyncio.timeout(PATIENCE):
            while not self._frames:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise EOFError
                self._frames.extend(self._decoder.feed(data))
        frame = self._frames.pop(0)
        assert isinstance(frame, Frame)
        return frame

    async def response(self) -> tuple[int, Response]:
        frame = await self.frame()
        assert (frame.type, frame.flags) == (2, 0)
        return frame.stream_id, Response.decode(frame.payload)

    async def request(self) -> tuple[int, Request]:
        frame = await self.frame()
        assert frame.type == 1
        return frame.stream_id, Request.decode(frame.payload)

    async def is_cut_off(self) -> bool:
        """Whether the other end has hung up, and said nothing more."""
        try:
            await self.frame()
        except (EOFError, ConnectionResetError):
            return True
        return False

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
