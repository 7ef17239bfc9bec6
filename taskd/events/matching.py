"""Which events a subscriber wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import betterproto2

from taskd import filters
from taskd.events.envelope import Envelope
from taskd.wellknown import unpack

__all__ = ["Matcher", "compile", "prepare"]

Matcher = Callable[[Envelope], bool]


def compile(expressions: Iterable[str]) -> Matcher:  # noqa: A001
    """Whether an envelope passes any of a subscriber's filters; without any, it does.

    Fields are ``topic``, ``namespace`` and ``event.…`` (containerd: ``events/events.go``). Raises
    `InvalidArgument`.
    """
    return _matcher(filters.compile(expressions))


async def prepare(expressions: Iterable[str]) -> Matcher:
    """As `compile`, for whoever has an event loop."""
    return _matcher(await filters.prepare(expressions))


def _matcher(compiled: filters.Filter) -> Matcher:
    def matches(envelope: Envelope) -> bool:
        event: betterproto2.Message | None = None

        def field(path: Sequence[str]) -> tuple[str, bool]:
            nonlocal event
            match path:
                case ["namespace", *_]:
                    return envelope.namespace, bool(envelope.namespace)
                case ["topic", *_]:
                    return envelope.topic, bool(envelope.topic)
                case ["event", *rest]:
                    if event is None:
                        event = unpack(envelope.event) if envelope.event else None
                    return _event_field(event, rest)
            return "", False

        return compiled.match(field)

    return matches


def _event_field(event: betterproto2.Message | None, path: Sequence[str]) -> tuple[str, bool]:
    """A field of an event, or of a message in it: a text, a truth, or the label of a map.

    Source: the ``Field`` methods that containerd generates for its events, which know no other
    types, and do not look at what of the path follows a text.
    """
    value: object = event
    for position, name in enumerate(path):
        if not isinstance(value, betterproto2.Message):
            break
        value = vars(value).get(name)
        if isinstance(value, dict):
            label = value.get(".".join(path[position + 1 :]))
            return ("", False) if label is None else (label, True)
    if isinstance(value, bool):
        return str(value).lower(), True
    return (value, bool(value)) if isinstance(value, str) else ("", False)
