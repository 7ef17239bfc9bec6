"""Publishes the journal into a JetStream stream: each event once, in order.

The server tells which events it has stored. Where that is uncertain (the connection ended before
the answer, or the daemon did) the stream itself is asked: every message says up to which position
all were known to be stored when it was sent, so only those between that one and the newest have to
be looked at. The server's own recognition of repeats, by message id, forgets after some minutes;
what it still covers is a message that is on its way while the stream is being asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header, PubAck, RawStreamMsg, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from taskd import codec
from taskd.errors import FailedPrecondition, ResourceExhausted, TaskdError, Unavailable, words
from taskd.events import Bus, Entry, Journal, Subscription
from taskd.nats.connection import ACKED, JOURNAL, NODE, POSITION, Headers, connected, position
from taskd.nats.settings import CURSOR, NatsConfig, Subjects

__all__ = ["NatsSink"]

log = logging.getLogger(__name__)

_AT_ONCE = 256
"""Events that are on their way at the same time."""
_ANSWER_SECONDS = 10.0
_CURSOR_SECONDS = 1.0
"""How often the cursor is written down; the stream knows better, it only frees the journal."""
_PAUSES = (0.25, 5.0)
"""Seconds from one attempt to the next: at first, and at most."""
_TOO_LARGE = 10054
"""JetStream's error for a message that is larger than its stream takes."""


@dataclass(slots=True)
class _Place:
    """How far the stream is."""

    position: int
    """All events up to this one are in the stream."""
    sequence: int = 0
    """Those beyond have greater numbers in the stream than this."""
    stored: set[int] = field(default_factory=set)
    """Positions beyond that are in the stream as well."""


class NatsSink:
    """`node` names this machine among those that publish into the stream."""

    def __init__(self, settings: NatsConfig, node: str, journal: Journal, bus: Bus) -> None:
        self._settings = settings
        self._subjects = Subjects(settings.subject)
        self._node = node
        self._journal = journal
        self._bus = bus
        self._trouble = ""
        self._pause = _PAUSES[0]

    async def run(self) -> None:
        """Publish for ever. Whatever stands in the way is logged once, and tried again."""
        while True:
            try:
                if self._journal.cursor(CURSOR) is None:
                    await self._journal.move_cursor(CURSOR, self._journal.first - 1)
                await self._session()
            except TaskdError as exc:
                self._report(str(exc))
            except TimeoutError:
                self._report("the server does not answer")
            except (nats.errors.Error, OSError) as exc:
                self._report(words(exc))
            except Exception:
                log.exception("NATS: this should not happen; trying again")
            await anyio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSES[1])

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error("NATS: events wait in the journal: %s", trouble)
        self._trouble = trouble

    async def _session(self) -> None:
        """Publish until the connection ends, which raises."""
        with anyio.CancelScope() as scope:
            async with connected(self._settings, scope.cancel) as client:
                stream = client.jetstream(timeout=_ANSWER_SECONDS)
                await self._make_stream(stream)
                await self._publish(client, stream, await self._find_place(stream))
        raise Unavailable("the connection ended")

    async def _make_stream(self, stream: JetStreamContext) -> None:
        name = self._settings.stream
        try:
            await stream.stream_info(name)
        except NotFoundError:
            log.info("NATS: making stream %s", name)
            await stream.add_stream(
                StreamConfig(
                    name,
                    description="What happens to containers and tasks",
                    subjects=[self._subjects.all()],
                    duplicate_window=120,
                )
            )

    async def _find_place(self, stream: JetStreamContext) -> _Place:
        """Find out which events the stream has already."""
        journal = self._journal.id
        name, mine = self._settings.stream, self._subjects.of_node(self._node)
        place = _Place(self._journal.cursor(CURSOR) or 0)
        try:
            newest = await stream.get_last_msg(name, mine)
        except NotFoundError:
            return place
        if position(newest.headers, journal) is None:
            log.warning(
                "NATS: stream %s has events of another journal of node %s: if a daemon still "
                "writes it, the nodes need names of their own ([events] node)",
                *(name, self._node),
            )
            return place
        if not self._is_ours(newest):
            await self._begin_anew(newest, place.position)
            return place
        acked, place.sequence = map(int, (newest.headers or {})[ACKED].split(":"))
        place.position = max(place.position, acked)
        sequence, end = place.sequence, newest.seq or 0
        while sequence < end:
            message = await stream.get_msg(name, sequence + 1, mine, next=True)
            sequence = message.seq or end
            found = position(message.headers, journal)
            if found is not None and found > place.position:
                place.stored.add(found)
        return place

    def _is_ours(self, newest: RawStreamMsg) -> bool:
        """Whether the newest message of the stream is an event that the journal has had.

        Else the journal was rolled back, by more than it knows of itself: from a backup, say.
        """
        number = position(newest.headers, self._journal.id) or 0
        if number > self._journal.last:
            return False
        kept = self._journal.read(number - 1, 1)
        if not kept or kept[0].position != number:
            return True  # retention has taken it, or it is in a gap
        return codec.encode(kept[0].envelope.to_message()) == newest.data

    async def _begin_anew(self, newest: RawStreamMsg, reached: int) -> None:
        """Let no event pass for another that has had its number."""
        last, earlier = self._journal.last, self._journal.id
        number = position(newest.headers, earlier) or 0
        await self._journal.begin_anew(number)
        log.error(
            "NATS: stream %s has other events of journal %s, up to position %d, than the journal, "
            "which was rolled back: it is journal %s from here on, and goes on after position %d; "
            "the events from %d to %d may be in the stream twice",
            *(self._settings.stream, earlier, number, self._journal.id),
            *(self._journal.last, reached + 1, last),
        )

    async def _publish(self, client: Client, stream: JetStreamContext, place: _Place) -> None:
        log.info("NATS: publishing what follows position %d", place.position)
        try:
            while True:
                try:
                    async with self._bus.subscribe((), place.position) as subscription:
                        await self._publish_all(client, stream, place, subscription)
                except ResourceExhausted:
                    first = self._journal.first
                    if place.position >= first - 1:
                        raise
                    log.error(
                        "NATS: the events from %d to %d are lost: the journal no longer has them",
                        *(place.position + 1, first - 1),
                    )
                    place.position = first - 1
        finally:
            with anyio.CancelScope(shield=True):
                await self._save(place.position)

    async def _publish_all(
        self, client: Client, stream: JetStreamContext, place: _Place, subscription: Subscription
    ) -> None:
        saved, written = -1, anyio.current_time()
        while True:
            entries: Sequence[Entry] = ()
            # If nothing comes, what has been reached is written down all the same.
            with anyio.move_on_after(math.inf if place.position == saved else _CURSOR_SECONDS):
                entries = await subscription.next_batch()
            for begin in range(0, len(entries), _AT_ONCE):
                await self._publish_batch(client, stream, place, entries[begin : begin + _AT_ONCE])
            place.position = max(place.position, subscription.position)
            if anyio.current_time() - written >= _CURSOR_SECONDS:
                saved, written = place.position, anyio.current_time()
                await self._save(saved)
            self._trouble, self._pause = "", _PAUSES[0]

    async def _save(self, reached: int) -> None:
        # If the journal does not take it, it stays where it is: the stream knows better.
        with suppress(TaskdError):
            await self._journal.move_cursor(CURSOR, reached)

    async def _publish_batch(
        self, client: Client, stream: JetStreamContext, place: _Place, entries: Sequence[Entry]
    ) -> None:
        """Publish events, of which the stream may have some, and wait until it has them all."""
        # Not publish_async, whose future never hears of an error (nats-py 2.16).
        answers: list[tuple[int, str, asyncio.Task[PubAck] | None]] = []
        loop = asyncio.get_running_loop()
        for entry in entries:
            subject = self._subjects.of(self._node, entry.envelope.namespace, entry.envelope.topic)
            payload = codec.encode(entry.envelope.to_message())
            headers: dict[str, str] = {
                Header.MSG_ID.value: f"{self._journal.id}-{entry.position}",
                Header.EXPECTED_STREAM.value: self._settings.stream,
                NODE: self._node,
                JOURNAL: self._journal.id,
                POSITION: str(entry.position),
                ACKED: f"{place.position}:{place.sequence}",
            }
            answer = None
            if entry.position in place.stored:
                place.stored.discard(entry.position)
            elif len(payload) + _size(headers) > client.max_payload:
                self._leave_out(entry.position, subject, "the server")
            else:
                publishing = stream.publish(subject, payload, _ANSWER_SECONDS, headers=headers)
                answer = loop.create_task(publishing)
            answers.append((entry.position, subject, answer))
        try:
            for number, subject, answer in answers:
                if answer is not None:
                    await self._take(answer, place, number, subject)
                place.position = number
        finally:
            pending = [answer for _, _, answer in answers if answer is not None]
            for answer in pending:
                answer.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _take(
        self, answer: asyncio.Task[PubAck], place: _Place, number: int, subject: str
    ) -> None:
        try:
            acknowledged = await answer
        except NoStreamResponseError:
            raise FailedPrecondition(
                f"stream {self._settings.stream} does not take subject {subject}"
            ) from None
        except APIError as exc:
            if exc.err_code != _TOO_LARGE:
                raise
            self._leave_out(number, subject, f"stream {self._settings.stream}")
        else:
            if not place.stored:
                place.sequence = acknowledged.seq

    def _leave_out(self, number: int, subject: str, whom: str) -> None:
        log.error(
            "NATS: event %d (%s) is lost: it is larger than %s takes", *(number, subject, whom)
        )


def _size(headers: Headers) -> int:
    """Bytes that headers take in a message."""
    return 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())
