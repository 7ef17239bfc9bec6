"""An event and where it belongs."""

from __future__ import annotations

from dataclasses import dataclass

from taskd import identifiers
from taskd.errors import InvalidArgument
from taskd.types import TypedValue

__all__ = ["Envelope", "validate_topic"]


@dataclass(frozen=True, slots=True)
class Envelope:
    timestamp: int
    """When it happened, in nanoseconds since the epoch."""
    namespace: str
    topic: str
    event: TypedValue | None

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
