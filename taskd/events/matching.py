"""What of an event a subscriber's filters can ask for, and whose filters it may pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import betterproto2

from taskd import filters
from taskd.events.envelope import Envelope
from taskd.filters import Filter, Lookup
from taskd.wellknown import unpack

__all__ = ["Index", "Matcher", "compile", "fields"]

Matcher = Callable[[Envelope], bool]

_Field = tuple[str, ...]


class _Filtered(Protocol):
    @property
    def filter(self) -> Filter: ...


T = TypeVar("T", bound=_Filtered)


def compile(expressions: Iterable[str]) -> Matcher:  # noqa: A001
    """Whether an envelope passes any of a subscriber's filters; without any, it does.

    Raises `InvalidArgument`.
    """
    compiled = filters.compile(expressions)
    return lambda envelope: compiled.match(fields(envelope))


def fields(envelope: Envelope) -> Lookup:
    """The fields that filters of events know.

    They are ``topic``, ``namespace`` and ``event.…`` (containerd: ``events/events.go``).
    """
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

    return field


class Index(Generic[T]):
    """Whoever has filters, found by an event that may pass them.

    Each alternative of a filter is kept under a field and the value that it must have there: of
    several, under the one that the fewest others are kept under. So an event costs what those who
    want it cost, and a little for each field, but nothing for all the rest.
    """

    def __init__(self) -> None:
        self._kept: dict[_Field, dict[str, dict[T, None]]] = defaultdict(dict)
        self._anything: dict[T, None] = {}
        self._places: dict[T, list[tuple[_Field, str] | None]] = {}

    def add(self, one: T) -> None:
        places = self._places[one] = [
            min(wanted, key=self._crowd, default=None) for wanted in one.filter.equalities()
        ]
        for place in places:
            if place is None:
                self._anything[one] = None
            else:
                field, value = place
                self._kept[field].setdefault(value, {})[one] = None

    def remove(self, one: T) -> None:
        for place in self._places.pop(one):
            if place is None:
                self._anything.pop(one, None)
                continue
            field, value = place
            if crowd := self._kept.get(field, {}).get(value):
                crowd.pop(one, None)
                if not crowd:
                    del self._kept[field][value]
                    if not self._kept[field]:
                        del self._kept[field]

    def candidates(self, lookup: Lookup) -> Iterator[T]:
        """Who may want the event with these fields, each once."""
        found = dict(self._anything)
        for field, kept in self._kept.items():
            value, present = lookup(field)
            if present and value in kept:
                found.update(kept[value])
        return iter(found)

    def __len__(self) -> int:
        return len(self._places)

    def _crowd(self, place: tuple[_Field, str]) -> int:
        field, value = place
        return len(self._kept.get(field, {}).get(value, ()))


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
