"""What happens, and what has happened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
from grpclib.const import Cardinality

from taskd.client.channel import RETRY_SECONDS, Channel
from taskd.errors import Unavailable, Unimplemented
from taskd.proto.containerd.services.events.v1 import SubscribeRequest
from taskd.proto.containerd.services.version.v1 import VersionStub
from taskd.proto.containerd.types import Envelope
from taskd.proto.google.protobuf import Empty
from taskd.proto.taskd.v1 import InfoRequest, InfoResponse, JournalStub, ReadRequest
from taskd.wellknown import from_any, nanoseconds, timestamp, unpack

if TYPE_CHECKING:
    import betterproto2

    from taskd.types import TypedValue

__all__ = ["Event", "Events", "journal"]

_SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""

    topic: str
    """``/tasks/exit``, for one."""
    namespace: str
    at: int
    """When, in nanoseconds since the epoch."""
    message: betterproto2.Message | None
    """What it is, of `taskd.proto.containerd.events`; None for a type that is not known."""
    raw: TypedValue | None
    """The same, as it came."""
    position: int | None = None
    """In the daemon's journal; None from a daemon without one."""

    @property
    def container_id(self) -> str:
        """Of the container that it is about; empty if it is about none."""
        found = getattr(self.message, "container_id", "")
        if not found and self.topic.startswith("/containers/"):
            found = getattr(self.message, "id", "")
        return str(found)

    @classmethod
    def from_message(cls, envelope: Envelope, position: int | None = None) -> Event:
        raw = from_any(envelope.event)
        return cls(
            envelope.topic,
            envelope.namespace,
            nanoseconds(envelope.timestamp),
            unpack(raw) if raw else None,
            raw,
            position,
        )


class Events:
    """A stream of events: ``async for`` has them; in ``async with`` it is there from its begin.

    When the daemon comes back after a restart it goes on: with a journal, where it was, so that
    nothing is missed; with a containerd, with what happens from then on.
    """

    def __init__(
        self,
        channel: Channel,
        filters: Sequence[str] = (),
        *,
        since: int | datetime | None = None,
        after: int | None = None,
        follow: bool = True,
        reconnect: bool = True,
    ) -> None:
        """See `Client.events`."""
        self._channel = channel
        self._filters = list(filters)
        self._since = int(since.timestamp() * 1e9) if isinstance(since, datetime) else since
        self._follow = follow
        self._reconnect = reconnect
        self.position = after
        """Of the last event there was, for `after` of another stream."""
        self._stream: AsyncGenerator[Event | None] | None = None
        self._journal = ""

    async def __aenter__(self) -> Events:
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None

    async def _begin(self) -> None:
        """Find out what there is to read from, and where it begins."""
        if self._stream is not None:
            return
        info = await journal(self._channel)
        if info is None:
            if self._since is not None or self.position is not None or not self._follow:
                raise Unimplemented(
                    f"the daemon at {self._channel.path} keeps no events: it is no taskd, and tells"
                    " what happens from now on alone",
                    verbatim=True,
                )
            self._stream = self._subscribed()
            await anext(self._stream)
            return
        self._journal = info.journal
        if self._follow and self._since is None and self.position is None:
            self.position = info.last
        self._stream = self._read()

    async def __aiter__(self) -> AsyncIterator[Event]:
        await self._begin()
        assert self._stream is not None
        async with aclosing(self._stream) as stream:
            async for event in stream:
                if event is not None:
                    yield event

    async def _read(self) -> AsyncGenerator[Event | None]:
        while True:
            request = ReadRequest(
                after=self.position,
                since=timestamp(self._since)
                if self.position is None and self._since is not None
                else None,
                filters=self._filters,
                follow=self._follow,
                journal=self._journal,
            )
            try:
                async with aclosing(JournalStub(self._channel).read(request)) as entries:
                    async for entry in entries:
                        assert entry.envelope is not None
                        self.position = entry.position
                        yield Event.from_message(entry.envelope, entry.position)
                return
            except Unavailable as exc:
                if not self._reconnect:
                    where = "" if self.position is None else f"; go on after {self.position}"
                    raise Unavailable(f"{exc}{where}", verbatim=True) from exc
            await self._returned()

    async def _subscribed(self) -> AsyncGenerator[Event | None]:
        """None for each time that from now on nothing is missed."""
        request = SubscribeRequest(filters=self._filters)
        while True:
            try:
                async with self._channel.request(
                    _SUBSCRIBE, Cardinality.UNARY_STREAM, SubscribeRequest, Envelope
                ) as stream:
                    await stream.send_message(request, end=True)
                    # containerd does not say when it has begun to listen: another call, which
                    # it takes after this one, is answered by then.
                    await VersionStub(self._channel).version(Empty())
                    yield None
                    async for envelope in stream:
                        yield Event.from_message(envelope)
            except Unavailable:
                if not self._reconnect:
                    raise
            await self._returned()

    async def _returned(self) -> None:
        """Wait for the daemon, however long it is away."""
        while True:
            await anyio.sleep(RETRY_SECONDS)
            try:
                await self._channel.connect()
            except Unavailable:
                continue
            return


async def journal(channel: Channel) -> InfoResponse | None:
    """What the daemon has of the past; None if it is no taskd."""
    try:
        return await channel.persist(lambda: JournalStub(channel).info(InfoRequest()))
    except Unimplemented:
        return None
