"""A service that does what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from grpclib.const import Cardinality, Handler

from taskd.api import request
from taskd.errors import NotFound, Unknown
from taskd.proto.google.protobuf import Any, Timestamp

__all__ = ["Message", "Service"]

Message = Any
"""A message with bytes in it."""


class Service:
    """Methods that do what is asked of them."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.received: list[bytes] = []

    async def echo(self, stream: request.Stream) -> None:
        message = await stream.recv_message()
        self.received.append(message.value)
        await stream.send_message(Message(type_url=message.type_url, value=message.value))

    async def grow(self, stream: request.Stream) -> None:
        """Answers with as many bytes as the request says."""
        message = await stream.recv_message()
        await stream.send_message(Message(value=bytes(message.seconds)))

    async def fail(self, stream: request.Stream) -> None:
        """Fails with as long a text as the request says."""
        message = await stream.recv_message()
        raise NotFound("ü" * message.seconds)

    async def refuse(self, stream: request.Stream) -> None:
        """Fails with the text that the request says."""
        message = await stream.recv_message()
        raise Unknown(message.value.decode())

    async def wait(self, stream: request.Stream) -> None:
        await stream.recv_message()
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def repeat(self, stream: request.Stream) -> None:
        """Sends back each message of a stream."""
        async for message in stream:
            await stream.send_message(message)

    async def pour(self, stream: request.Stream) -> None:
        """Sends megabytes, as many as the request says, and waits for ever."""
        message = await stream.recv_message()
        self.begun += 1
        try:
            for _ in range(message.seconds):
                await stream.send_message(Message(value=bytes(1 << 20)))
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    def __mapping__(self) -> Mapping[str, Handler]:
        unary, streams = Cardinality.UNARY_UNARY, Cardinality.STREAM_STREAM
        return {
            "/test.Service/Echo": Handler(self.echo, unary, Message, Message),
            "/test.Service/Grow": Handler(self.grow, unary, Timestamp, Message),
            "/test.Service/Fail": Handler(self.fail, unary, Timestamp, Message),
            "/test.Service/Refuse": Handler(self.refuse, unary, Message, Message),
            "/test.Service/Wait": Handler(self.wait, unary, Timestamp, Message),
            "/test.Service/Repeat": Handler(self.repeat, streams, Message, Message),
            "/test.Service/Pour": Handler(self.pour, Cardinality.UNARY_STREAM, Timestamp, Message),
        }
