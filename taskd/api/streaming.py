"""``containerd.services.streaming.v1.Streaming``; source: ``services/streaming/service.go``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

import anyio

from taskd.api import request
from taskd.codec import MalformedMessage, decode
from taskd.errors import AlreadyExists, Unknown
from taskd.proto.containerd.services.streaming.v1 import StreamingBase, StreamInit
from taskd.proto.google.protobuf import Any, Empty
from taskd.together import together
from taskd.transfer.streams import Stream, Streams
from taskd.types import TypedValue
from taskd.wellknown import from_any, pack, to_any

__all__ = ["Streaming"]

_INIT = pack(StreamInit()).type_url


class Streaming(StreamingBase):
    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Sends an empty message once other calls can refer to the stream."""
        first = await anext(messages, None)
        if first is None:
            raise Unknown("EOF")
        name = _name(first)
        call = request.current.get()
        try:
            opened = self._streams.opened(request.namespace_if_any(), name)
            stream = opened.__enter__()
        except AlreadyExists as exc:
            raise Unknown(exc.message) from None  # as containerd's
        with ExitStack() as stack:
            stack.push(opened)
            await call.send_message(to_any(pack(Empty())))
            async with together() as group:
                group.start_soon(_receive, messages, stream)
                async for value in stream.outgoing:
                    await call.send_message(to_any(value))
                # Nobody reads what comes now.
                group.cancel_scope.cancel()
        return
        yield Any()


async def _receive(messages: AsyncIterator[Any], stream: Stream) -> None:
    """Pass on what the client sends, as fast as it is read."""
    try:
        async for message in messages:
            await stream.incoming.send(from_any(message) or TypedValue(""))
    except anyio.BrokenResourceError:
        pass  # nobody wants more
    finally:
        stream.incoming.close()


def _name(first: Any) -> str:
    """Raises `Unknown` for what begins no stream."""
    if first.type_url != _INIT:
        raise Unknown(
            f'can\'t unmarshal type "{first.type_url}" to output '
            '"containerd.services.streaming.v1.StreamInit"'
        )
    try:
        return decode(StreamInit, first.value).id
    except MalformedMessage as exc:
        raise Unknown(str(exc)) from None
