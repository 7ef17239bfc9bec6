"""``containerd.services.events.v1.Events``, and the ttrpc ``Events.Forward`` that shims call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from taskd import filters, ttrpc
from taskd.api import request
from taskd.errors import InvalidArgument, TaskdError, Unknown
from taskd.events import Bus, Envelope
from taskd.proto.containerd.services.events.ttrpc import v1 as ttrpc_api
from taskd.proto.containerd.services.events.v1 import (
    EventsBase,
    ForwardRequest,
    PublishRequest,
    SubscribeRequest,
)
from taskd.proto.containerd.types import Envelope as EnvelopeMessage
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import from_any

__all__ = ["Events", "ttrpc_service"]


class Events(EventsBase):
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def publish(self, message: PublishRequest) -> Empty:
        try:
            namespace = request.namespace()
        except TaskdError as exc:
            raise exc.within("failed publishing event") from None
        await self._bus.publish(namespace, message.topic, from_any(message.event))
        return Empty()

    async def forward(self, message: ForwardRequest) -> Empty:
        await self._bus.forward(Envelope.from_message(message.envelope))
        return Empty()

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[EnvelopeMessage]:
        try:
            passes = await filters.prepare(message.filters)
            subscription = self._bus.subscribe(message.filters, passes=passes)
        except InvalidArgument as exc:
            # UNKNOWN is what containerd makes of it (services/events/service.go).
            raise Unknown(
                f"subscription error: failed parsing subscription filters: {exc}"
            ) from exc
        async with subscription:
            # Tells the client that nothing published from now on escapes it.
            await request.current.get().send_initial_metadata()
            while True:
                for entry in await subscription.next_batch():
                    yield entry.envelope.to_message()


def ttrpc_service(bus: Bus) -> ttrpc.Service:
    """The service through which shims publish their events."""

    async def forward(context: ttrpc.CallContext, payload: bytes) -> bytes:
        message = ttrpc.unmarshal(ttrpc_api.ForwardRequest, payload)
        await bus.forward(Envelope.from_message(message.envelope), shims=True)
        # Who subscribes hears of it before the shim does: that waits for nothing.
        await asyncio.sleep(0)
        return b""

    return ttrpc.Service("containerd.services.events.ttrpc.v1.Events", {"Forward": forward})
