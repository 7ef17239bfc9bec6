"""``taskd events --nats``: the events of all machines that publish into one stream."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from taskd.cli.events import RETRY_SECONDS, show
from taskd.client import Event
from taskd.codec import decode
from taskd.errors import NotFound, Unavailable
from taskd.events import Envelope, matching
from taskd.nats.connection import NODE, POSITION, connected
from taskd.nats.settings import NatsConfig, Subjects
from taskd.proto.containerd.types import Envelope as EnvelopeMessage

__all__ = ["fleet"]

_ENDED = "the connection to NATS ended"


async def fleet(
    settings: NatsConfig,
    filters: Sequence[str],
    since: int | None = None,
    *,
    follow: bool = True,
    reconnect: bool = False,
    as_json: bool = False,
) -> None:
    """Print the events of a stream, a line for each, with the node's name.

    They begin with those that were stored at `since`, nanoseconds since the epoch. With `reconnect`
    it goes on where it was whenever there is a server. Raises `InvalidArgument` for a bad filter,
    `NotFound` without the stream, `Unavailable` without a server.
    """
    reader = _Reader(settings, filters, since, follow, as_json)
    while True:
        try:
            with anyio.CancelScope() as scope:
                async with connected(settings, scope.cancel) as client:
                    await reader.read(client)
                    return
            raise Unavailable(_ENDED, verbatim=True)
        except NotFoundError as exc:
            raise NotFound(f"stream {settings.stream}") from exc
        except Unavailable:
            if not reconnect:
                raise
        except nats.errors.Error as exc:
            if not reconnect:
                raise Unavailable(f"NATS: {exc}", verbatim=True) from exc
        await anyio.sleep(RETRY_SECONDS)


class _Reader:
    """Prints a stream, in as many connections as it takes."""

    def __init__(
        self,
        settings: NatsConfig,
        filters: Sequence[str],
        since: int | None,
        follow: bool,
        as_json: bool,
    ) -> None:
        self._stream = settings.stream
        self._subject = Subjects(settings.subject).all()
        self._matches = matching.compile(filters)
        self._since = since
        self._follow = follow
        self._as_json = as_json
        self._last: int | None = None
        """Number of the last message that was printed, or that there was at the beginning."""

    async def read(self, client: Client) -> None:
        stream = client.jetstream()
        if self._last is None and self._since is None and self._follow:
            self._last = (await stream.stream_info(self._stream)).state.last_seq
        subscription = await stream.subscribe(
            self._subject, stream=self._stream, ordered_consumer=True, config=self._start()
        )
        if not self._follow and await _is_empty(subscription):
            return
        async for message in subscription.messages:
            self._last = message.metadata.sequence.stream
            envelope = decode(EnvelopeMessage, message.data)
            if self._matches(Envelope.from_message(envelope)):
                headers = message.headers or {}
                event = Event.from_message(envelope, int(headers.get(POSITION, 0)))
                print(show(event, headers.get(NODE, ""), as_json=self._as_json))
                sys.stdout.flush()
            if not self._follow and not message.metadata.num_pending:
                return
        raise Unavailable(_ENDED, verbatim=True)

    def _start(self) -> ConsumerConfig:
        if self._last is not None:
            return ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._last + 1
            )
        if self._since is not None:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._since // 1000)
            return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=moment)
        return ConsumerConfig(deliver_policy=DeliverPolicy.ALL)


async def _is_empty(subscription: JetStreamContext.PushSubscription) -> bool:
    """Whether there is nothing to come and nothing has come."""
    found = await subscription.consumer_info()
    return not found.num_pending and not (found.delivered and found.delivered.consumer_seq)
