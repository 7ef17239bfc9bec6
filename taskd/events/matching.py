"""Which events a subscriber wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import betterproto2

from taskd import filters
from taskd.events.envelope import Envelope
from taskd.wellknown import unpack

__all__ = ["Matcher", "compile"]

Matcher = Callable[[Envelope], bool]


def compile(expressions: Iterable[str]) -> Matcher:  # noqa: A001
    """Whether an envelope passes any of a subscriber's filters; without any, it does.

    Fields are ``topic``, ``namespace`` and ``event.…`` (containerd: ``events/events.go``). Raises
    `InvalidArgument`.
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
