"""The conversation between clients, a taskd and its shims, and what is said in it."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import cache
from typing import Any, Self

from grpclib.const import Cardinality, Status

from taskd import codec
from taskd.client.channel import Channel
from taskd.plain import plain, rfc3339
from taskd.proto.taskd.v1 import FollowRequest, FollowResponse, Payload, Way
from taskd.wellknown import nanoseconds

__all__ = ["Conversation", "entry"]

_FOLLOW = "/taskd.v1.Trace/Follow", Cardinality.UNARY_STREAM, FollowRequest, FollowResponse


class Conversation:
    """What is said from now on: ``async for`` has it; in ``async with`` nothing escapes it.

    Raises `Unavailable` when the daemon goes away, and `Unimplemented` for one that is no taskd.
    """

    def __init__(self, channel: Channel, request: FollowRequest) -> None:
        self._channel = channel
        self._request = request
        self._stream: AsyncGenerator[FollowResponse | None] | None = None

    async def __aenter__(self) -> Self:
        self._stream = self._heard()
        await anext(self._stream)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._stream.aclose()

    async def __aiter__(self) -> AsyncIterator[FollowResponse]:
        assert self._stream is not None
        async with aclosing(self._stream) as stream:
            async for said in stream:
                if said is not None:
                    yield said

    async def _heard(self) -> AsyncGenerator[FollowResponse | None]:
        async with self._channel.request(*_FOLLOW) as ask:
            await ask.send_message(self._request, end=True)
            await ask.recv_initial_metadata()
            yield None
            async for said in ask:
                yield said


def entry(said: FollowResponse) -> dict[str, Any]:
    """The beginning or the end of a call as JSON has it, its messages decoded."""
    way = Way(said.way).name or ""
    found = {
        "call": said.call,
        "begin": rfc3339(nanoseconds(said.begin)),
        "way": way,
        "namespace": said.namespace,
        "task": said.task,
        "method": said.method,
        "nanoseconds": said.nanoseconds,
        "request": _decoded(said.method, said.request, 0),
        "answer": _decoded(said.method, said.answer, 1),
        "code": Status(said.code).name if said.nanoseconds is not None and said.code else None,
        "error": said.error,
        "lost": said.lost or None,
    }
    return {
        key: value
        for key, value in found.items()
        if value not in (None, "") and (value or key in ("call", "nanoseconds"))
    }


def _decoded(method: str, payload: Payload | None, which: int) -> Any:
    """A message for people: what it says, or how long it is."""
    if payload is None or (not payload.data and payload.size):
        return None
    if not method.startswith("/"):
        return payload.data.decode(errors="replace")
    if len(payload.data) < payload.size:
        return f"{payload.size} bytes"
    try:
        kind = _kinds(method)[which]
        return plain(codec.decode(kind, payload.data), opened=True)
    except (LookupError, codec.MalformedMessage):
        return f"{payload.size} bytes"


@cache
def _kinds(method: str) -> tuple[Any, Any]:
    """Classes of a method's request and answer. Raises LookupError for one that is not known."""
    service = method[1:].partition("/")[0]
    package, _, name = service.rpartition(".")
    try:
        module = importlib.import_module(f"taskd.proto.{package}")
        base: Callable[[], Any] = getattr(module, f"{name}Base")
    except (ImportError, AttributeError):
        raise LookupError(method) from None
    handler = base().__mapping__()[method]
    return handler.request_type, handler.reply_type
