"""``containerd.services.events.v1.Events``, and the ttrpc ``Events.Forward`` that shims call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import betterproto2

from taskd import filters, ttrpc
from taskd.api import request
from taskd.codec import decode
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
from taskd.wellknown import GO_ZERO, from_any, nanoseconds, timestamp, to_any, unpack

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
        await self._bus.forward(_envelope(message.envelope))
        return Empty()

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[EnvelopeMessage]:
        try:
            matches = _matcher(message.filters)
        except InvalidArgument as exc:
            # UNKNOWN is what containerd makes of it (services/events/service.go).
            raise Unknown(
                f"subscription error: failed parsing subscription filters: {exc}"
            ) from exc
        async with self._bus.subscribe(matches) as subscription:
            # Tells the client that nothing published from now on escapes it.
            await request.current.get().send_initial_metadata()
            while True:
                for envelope in await subscription.next_batch():
                    yield _message(envelope)


def ttrpc_service(bus: Bus) -> ttrpc.Service:
    """The service through which shims publish their events."""

    async def forward(context: ttrpc.CallContext, payload: bytes) -> bytes:
        message = decode(ttrpc_api.ForwardRequest, payload)
        await bus.forward(_envelope(message.envelope))
        return b""

    return ttrpc.Service("containerd.services.events.ttrpc.v1.Events", {"Forward": forward})


def _envelope(message: EnvelopeMessage | None) -> Envelope:
    if message is None:
        message = EnvelopeMessage()
    if nanoseconds(message.timestamp) == GO_ZERO:
        raise InvalidArgument("timestamp must be set on forwarded event")
    return Envelope(
        nanoseconds(message.timestamp), message.namespace, message.topic, from_any(message.event)
    )


def _message(envelope: Envelope) -> EnvelopeMessage:
    return EnvelopeMessage(
        timestamp=timestamp(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=to_any(envelope.event),
    )


def _matcher(expressions: Iterable[str]) -> Callable[[Envelope], bool]:
    """Whether an envelope passes any of a subscriber's filters.

    Fields are ``topic``, ``namespace`` and ``event.…`` (containerd: ``events/events.go``).
    """
    compiled = filters.compile(expressions)

    def matches(envelope: Envelope) -> bool:
        event: betterproto2.Message | None = None

        def field(path: Sequence[str]) -> tuple[str, bool]:
            nonlocal event
            match path:
                case ["namespace"]:
                    return envelope.namespace, bool(envelope.namespace)
                case ["topic"]:
                    return envelope.topic, bool(envelope.topic)
                case ["event", *rest]:
                    if event is None:
                        event = unpack(envelope.event) if envelope.event else None
                    return _event_field(event, rest)
            return "", False

        return compiled.match(field)

    return matches


def _event_field(message: object, path: Sequence[str]) -> tuple[str, bool]:
    """A text field of an event, or of a message or a map in it; other types have no value.

    Source: the ``Field`` methods that containerd generates for its events.
    """
    for position, name in enumerate(path):
        if isinstance(message, dict):
            message = message.get(".".join(path[position:]))
            break
        message = getattr(message, name, None)
    return (message, bool(message)) if isinstance(message, str) else ("", False)
