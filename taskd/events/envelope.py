"""An event and where it belongs."""

from __future__ import annotations

from typing import NamedTuple

from taskd import identifiers
from taskd.errors import InvalidArgument
from taskd.proto.containerd.types import Envelope as EnvelopeMessage
from taskd.types import TypedValue
from taskd.wellknown import GO_ZERO, from_any, nanoseconds, timestamp, to_any

__all__ = ["Envelope", "validate_topic"]


class Envelope(NamedTuple):
    timestamp: int
    """When it happened, in nanoseconds since the epoch."""
    namespace: str
    topic: str
    event: TypedValue | None

    @classmethod
    def from_message(cls, message: EnvelopeMessage | None) -> Envelope:
        """Raises `InvalidArgument` for one without a time, or of one that nothing can hold."""
        if message is None:
            message = EnvelopeMessage()
        happened = nanoseconds(message.timestamp)
        if happened == GO_ZERO:
            raise InvalidArgument("timestamp must be set on forwarded event")
        if not -(2**63) <= happened // 10**9 < 2**63:
            raise InvalidArgument("timestamp of forwarded event is out of range")
        return cls(happened, message.namespace, message.topic, from_any(message.event))

    def to_message(self) -> EnvelopeMessage:
        return EnvelopeMessage(
            timestamp=timestamp(self.timestamp),
            namespace=self.namespace,
            topic=self.topic,
            event=to_any(self.event),
        )

    def validate(self) -> None:
        """Raise `InvalidArgument` unless this may be forwarded (containerd: ``exchange.go``)."""
        try:
            identifiers.validate(self.namespace)
        except InvalidArgument as exc:
            raise InvalidArgument(f"event envelope has invalid namespace: {exc}") from None
        validate_topic(self.topic)


def validate_topic(topic: str) -> None:
    """Raise `InvalidArgument` unless `topic` is a path of valid identifiers, ``/tasks/exit``."""
    if not topic:
        raise InvalidArgument(f'envelope topic "{topic}": must not be empty')
    if not topic.startswith("/"):
        raise InvalidArgument(f"envelope topic \"{topic}\": must start with '/'")
    if topic == "/":
        raise InvalidArgument(f'envelope topic "{topic}": must have at least one component')
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except InvalidArgument as exc:
            raise InvalidArgument(
                f'envelope topic "{topic}": failed validation on component "{component}": {exc}'
            ) from None
