"""``taskd.v1.Journal``: the events of the past."""

from __future__ import annotations

from collections.abc import AsyncIterator

from taskd import filters
from taskd.api import request
from taskd.errors import FailedPrecondition, OutOfRange
from taskd.events import Bus
from taskd.events import Journal as EventJournal
from taskd.proto.taskd.v1 import (
    InfoRequest,
    InfoResponse,
    JournalBase,
    ReadRequest,
    ReadResponse,
)
from taskd.wellknown import nanoseconds

__all__ = ["Journal"]


class Journal(JournalBase):
    def __init__(self, journal: EventJournal, bus: Bus, node: str) -> None:
        self._journal = journal
        self._bus = bus
        self._node = node

    async def read(self, message: ReadRequest) -> AsyncIterator[ReadResponse]:
        if message.journal and message.journal != self._journal.id:
            raise FailedPrecondition(
                f"journal {message.journal} is no more; this is journal {self._journal.id}"
            )
        until = None if message.follow else self._journal.last
        left = message.limit or None
        after = self._start(message)
        passes = await filters.prepare(message.filters)
        async with self._bus.subscribe(
            message.filters, after, until, passes=passes
        ) as subscription:
            # Tells a client that follows that nothing published from now on escapes it.
            await request.current.get().send_initial_metadata()
            while until is None or subscription.position < until:
                for entry in await subscription.next_batch():
                    yield ReadResponse(
                        position=entry.position, envelope=entry.envelope.to_message()
                    )
                    if left is not None:
                        left -= 1
                        if not left:
                            return

    async def info(self, message: InfoRequest) -> InfoResponse:
        journal = self._journal
        return InfoResponse(
            journal=journal.id,
            first=journal.first,
            last=journal.last,
            size=journal.size,
            node=self._node,
        )

    def _start(self, message: ReadRequest) -> int:
        journal = self._journal
        value = message.after
        if message.since is not None:
            return journal.position_at(nanoseconds(message.since))
        if value is None:
            return journal.last if message.follow else journal.first - 1
        if value < journal.first - 1:
            raise OutOfRange(
                f"the events after position {value} are no longer kept; the first is that at "
                f"position {journal.first}"
            )
        if value > journal.last:
            raise OutOfRange(
                f"there is no event at position {value} yet; the newest is that at position "
                f"{journal.last}"
            )
        return value
