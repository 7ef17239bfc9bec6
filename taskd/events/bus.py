"""Publish and subscribe: into the journal first, then to whoever subscribes."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Self
from weakref import WeakSet

from taskd import filters as language
from taskd.errors import ResourceExhausted, Unavailable
from taskd.events.envelope import Envelope, validate_topic
from taskd.events.journal import Entry, Journal
from taskd.events.matching import Index, fields
from taskd.filters import Filter, Lookup
from taskd.types import TypedValue
from taskd.wellknown import unpack

__all__ = ["Bus", "Subscription"]

RECENT = 1024
"""Events kept in memory for each set of filters, besides the journal."""
_PAGE = 256
"""Events read from the journal at once."""
_BUSY_SECONDS = 0.1
"""Between two attempts to read a journal that somebody else has locked."""


class Bus:
    """Hands every event to every subscriber whose filters it passes, in the journal's order.

    A subscriber has no queue, only a position: one that is slow reads from the journal what is no
    longer in memory, so that it costs nobody anything, and misses nothing that is kept.

    Until `forget`, who subscribes is also given what has happened to tasks older than the bus. The
    clients of an earlier daemon take seconds to notice that it is back (Docker Engine up to four),
    and one that misses an exit takes the container for running, for ever. Tasks made since are left
    out: their clients were there to subscribe.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._feeds = _Feeds(journal.last)
        self._kept: list[Entry] | None = []
        self._made: set[tuple[str, str]] = set()
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        journal.listen(self._deliver)

    async def publish(
        self, namespace: str, topic: str, event: TypedValue | None, *, first_hand: bool = False
    ) -> None:
        """Publish an event of this daemon's own, now.

        `first_hand` is of steps in a process's life: one that has been told already is left out.
        Raises `InvalidArgument` for a bad topic, and what `Journal.append` does.
        """
        validate_topic(topic)
        envelope = Envelope(time.time_ns(), namespace, topic, event)
        await self._journal.append(envelope, first_hand=first_hand)

    async def forward(self, envelope: Envelope, *, shims: bool = False) -> None:
        """Publish an event of somebody else's, as it is; a shim's only if it is not known yet.

        Raises `InvalidArgument`, and what `Journal.append` does.
        """
        envelope.validate()
        await self._journal.append(envelope, shims=shims)

    def subscribe(
        self,
        filters: Iterable[str],
        after: int | None = None,
        until: int | None = None,
        *,
        passes: Filter | None = None,
        internal: bool = False,
    ) -> Subscription:
        """Events that pass any of `filters`; use it in ``async with``.

        They are those published from now on, or all that follow position `after` of the journal,
        for ever, or up to position `until`. Raises `InvalidArgument` for a bad filter; `passes` is
        what `filters.prepare` has made of them. What is `internal` to the daemon is none of `lags`.
        """
        feed = self._feeds.get(tuple(filters), passes)
        returning = self._kept if after is None and self._kept else ()
        position = self._journal.last if after is None else after
        first = [entry for entry in returning if feed.wants(entry)]
        subscription = Subscription(self._journal, self._feeds, feed, position, until, first)
        if not internal:
            self._subscriptions.add(subscription)
        return subscription

    def lags(self) -> list[int]:
        """How far each subscriber is behind the newest event that it wants."""
        return [subscription.lag for subscription in self._subscriptions]

    def forget(self) -> None:
        """Keep nothing any longer: who was subscribed to an earlier daemon has come back."""
        self._kept = None
        self._made.clear()

    def _deliver(self, entry: Entry) -> None:
        envelope = entry.envelope
        if self._kept is not None and envelope.topic.startswith("/tasks/") and envelope.event:
            task = envelope.namespace, getattr(unpack(envelope.event), "container_id", "")
            if envelope.topic == "/tasks/create":
                self._made.add(task)
            elif task not in self._made:
                self._kept.append(entry)
        self._feeds.offer(entry)


class _Feeds:
    """All feeds that somebody has subscribed to."""

    def __init__(self, position: int) -> None:
        self.offered = position
        """Position of the newest event, whether anybody wants it or not."""
        self._feeds: dict[tuple[str, ...], _Feed] = {}
        self._index: Index[_Feed] = Index()

    def get(self, key: tuple[str, ...], passes: Filter | None = None) -> _Feed:
        """The feed with these filters. Raises `InvalidArgument` for a bad one."""
        return self._feeds.get(key) or _Feed(key, passes or language.compile(key), self.offered)

    def offer(self, entry: Entry) -> None:
        self.offered = entry.position
        lookup = fields(entry.envelope)
        for feed in self._index.candidates(lookup):
            feed.offer(entry, lookup)

    def join(self, feed: _Feed) -> None:
        if not feed.subscribers:
            self._feeds[feed.key] = feed
            self._index.add(feed)
        feed.subscribers += 1

    def leave(self, feed: _Feed) -> None:
        feed.subscribers -= 1
        if not feed.subscribers:
            del self._feeds[feed.key]
            self._index.remove(feed)

    def __len__(self) -> int:
        return len(self._feeds)


class _Feed:
    """The newest events that pass one set of filters, for all who subscribed with that set."""

    def __init__(self, key: tuple[str, ...], passes: Filter, position: int) -> None:
        self.key = key
        self.filter = passes
        self.subscribers = 0
        self.recent: list[Entry] = []
        self.passed = position
        """Events up to here are not in `recent`, whether they match or not."""
        self.last = position
        """Position of the newest event that matches, or of the time when nobody had subscribed."""
        self._waiting: set[asyncio.Future[None]] = set()

    def wants(self, entry: Entry) -> bool:
        return self.filter.match(fields(entry.envelope))

    def offer(self, entry: Entry, lookup: Lookup) -> None:
        if not self.filter.match(lookup):
            return
        self.recent.append(entry)
        self.last = entry.position
        if len(self.recent) >= 2 * RECENT:
            self.passed = self.recent[RECENT - 1].position
            del self.recent[:RECENT]
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def changed(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)


class Subscription:
    """A subscriber's place among the events."""

    def __init__(
        self,
        journal: Journal,
        feeds: _Feeds,
        feed: _Feed,
        position: int,
        until: int | None,
        first: list[Entry],
    ) -> None:
        self._journal = journal
        self._feeds = feeds
        self._feed = feed
        self._first = first
        self._until = until
        self.position = position
        """Of the last event that it was given or that its filters left out."""
        feeds.join(feed)

    @property
    def lag(self) -> int:
        """How far it is behind the newest event that it wants."""
        return max(self._feed.last - self.position, 0)

    async def next_batch(self) -> Sequence[Entry]:
        """What has come since the last call; waits for one event at least.

        Empty at the end, for a subscription that has one. Nothing is lost if it is cancelled.

        Raises `ResourceExhausted`, with the position to go on from, when the journal no longer has
        all that this subscriber has not seen.
        """
        if self._first:
            batch, self._first = self._first, []
            return batch
        while True:
            if self.position < self._feed.passed:
                # However much there is to read, nobody else waits for it.
                await asyncio.sleep(0)
                try:
                    batch = self._read()
                except Unavailable:
                    await asyncio.sleep(_BUSY_SECONDS)
                    continue
            else:
                recent = self._feed.recent
                batch = recent[bisect_right(recent, self.position, key=_position) :]
                self.position = max(self.position, self._feeds.offered)
            if self._until is not None:
                batch = [entry for entry in batch if entry.position <= self._until]
            if batch or (self._until is not None and self.position >= self._until):
                return batch
            if self._until is None and self.position >= self._feed.last:
                await self._feed.changed()

    def _read(self) -> list[Entry]:
        first = self._journal.first
        if self.position < first - 1:
            raise ResourceExhausted(
                f"the journal no longer has the events from {self.position + 1} to {first - 1}; "
                f"go on after position {first - 1}",
                verbatim=True,
            )
        page = [
            entry
            for entry in self._journal.read(self.position, _PAGE)
            if entry.position <= self._feed.passed
        ]
        self.position = page[-1].position if page else self._feed.passed
        return [entry for entry in page if self._feed.wants(entry)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._feeds.leave(self._feed)


_position = attrgetter("position")
