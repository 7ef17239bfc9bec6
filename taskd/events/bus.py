"""Publish and subscribe, within this process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from taskd.errors import ResourceExhausted
from taskd.events.envelope import Envelope, validate_topic
from taskd.types import TypedValue
from taskd.wellknown import unpack

__all__ = ["Bus", "Subscription"]

BACKLOG = 65536
"""Events that may wait for one subscriber before it is dropped."""


class Bus:
    """Hands every event to every subscriber whose filter it passes, in the order published.

    Until `forget`, who subscribes is also given what has happened to tasks older than the bus. The
    clients of an earlier daemon take seconds to notice that it is back (Docker Engine up to four),
    and one that misses an exit takes the container for running, for ever. Tasks made since are left
    out: their clients were there to subscribe.
    """

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._kept: list[Envelope] | None = []
        self._made: set[tuple[str, str]] = set()

    async def publish(self, namespace: str, topic: str, event: TypedValue | None) -> None:
        """Publish an event of this daemon's own, now. Raises `InvalidArgument` for a bad topic."""
        validate_topic(topic)
        self._deliver(Envelope(time.time_ns(), namespace, topic, event))

    async def forward(self, envelope: Envelope) -> None:
        """Publish an event of somebody else's, as it is. Raises `InvalidArgument`."""
        envelope.validate()
        self._deliver(envelope)

    def subscribe(self, matches: Callable[[Envelope], bool]) -> Subscription:
        """Events published from now on for which `matches` is true; use it in ``async with``."""
        subscription = Subscription(self._subscriptions, matches)
        for envelope in self._kept or ():
            subscription.offer(envelope)
        return subscription

    def forget(self) -> None:
        """Keep nothing any longer: who was subscribed to an earlier daemon has come back."""
        self._kept = None
        self._made.clear()

    def _deliver(self, envelope: Envelope) -> None:
        if self._kept is not None and envelope.topic.startswith("/tasks/") and envelope.event:
            task = envelope.namespace, getattr(unpack(envelope.event), "container_id", "")
            if envelope.topic == "/tasks/create":
                self._made.add(task)
            elif task not in self._made:
                self._kept.append(envelope)
        for subscription in tuple(self._subscriptions):
            subscription.offer(envelope)


class Subscription:
    """A subscriber's queue. A slow one never slows a publisher: past its backlog it is dropped."""

    def __init__(self, members: set[Subscription], matches: Callable[[Envelope], bool]) -> None:
        self._members = members
        self._matches = matches
        self._waiting: deque[Envelope] = deque()
        self._changed = asyncio.Event()
        self._dropped = False
        members.add(self)

    def offer(self, envelope: Envelope) -> None:
        if not self._matches(envelope):
            return
        if len(self._waiting) >= BACKLOG:
            self._dropped = True
            self._members.discard(self)
        else:
            self._waiting.append(envelope)
        self._changed.set()

    async def next_batch(self) -> Iterable[Envelope]:
        """What has come since the last call; waits for one event at least.

        Raises `ResourceExhausted` when this subscriber was dropped because it fell too far behind
        (after it was given all that it had not missed).
        """
        while not self._waiting:
            if self._dropped:
                raise ResourceExhausted(f"subscriber fell {BACKLOG} events behind")
            self._changed.clear()
            await self._changed.wait()
        batch, self._waiting = self._waiting, deque()
        return batch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._members.discard(self)
