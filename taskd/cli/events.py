"""``taskd events``: what has happened, and what happens."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from taskd import config
from taskd.cli.plain import digits, line, plain
from taskd.errors import InvalidArgument, Unavailable, from_status
from taskd.events import Envelope
from taskd.grpc.channel import Channel
from taskd.printable import printable
from taskd.proto.taskd.v1 import InfoRequest, JournalStub, ReadRequest
from taskd.wellknown import timestamp, unpack

__all__ = ["Start", "events", "moment", "show"]

RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: after a position, at a time in nanoseconds since the epoch, or neither."""

    after: int | None = None
    since: int | None = None


async def events(
    address: Path,
    filters: Sequence[str],
    start: Start,
    *,
    follow: bool = True,
    reconnect: bool = False,
    as_json: bool = False,
) -> None:
    """Print events, a line for each.

    With `reconnect` it goes on where it was whenever the daemon is back. Raises the daemon's error,
    and `Unavailable`, with the position to go on from, when the daemon goes away.
    """
    position: int | None = None
    journal = ""
    while True:
        try:
            async with Channel(address) as channel:
                stub = JournalStub(channel)
                if not journal:
                    info = await stub.info(InfoRequest())
                    journal = info.journal
                    if follow and start == Start():
                        position = info.last
                where = Start(after=position) if position is not None else start
                async for entry in stub.read(_request(where, filters, follow, journal)):
                    position = entry.position
                    print(show(Envelope.from_message(entry.envelope), position, as_json=as_json))
                    sys.stdout.flush()
                return
        except GRPCError as exc:
            if exc.status != Status.UNAVAILABLE:
                raise from_status(exc.status.value, exc.message or "") from exc
        except BrokenPipeError:
            raise  # that of our own output
        except (StreamTerminatedError, ConnectionError, FileNotFoundError) as exc:
            if not reconnect:
                where_to = "" if position is None else f"; go on with --after {position}"
                raise Unavailable(f"no daemon at {address}{where_to}", verbatim=True) from exc
        await anyio.sleep(RETRY_SECONDS)


def _request(start: Start, filters: Sequence[str], follow: bool, journal: str) -> ReadRequest:
    return ReadRequest(
        after=start.after,
        since=None if start.since is None else timestamp(start.since),
        filters=list(filters),
        follow=follow,
        journal=journal,
    )


def moment(text: str) -> int:
    """Nanoseconds since the epoch of a time (RFC 3339) or of so long ago (``10m``).

    Raises `InvalidArgument`.
    """
    try:
        ago = timedelta(seconds=config.seconds(text))
        return int((datetime.now(UTC) - ago).timestamp() * 1e9)
    except ValueError:
        pass
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        raise InvalidArgument(
            f"{text!r} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 10m",
            verbatim=True,
        ) from None


def show(
    envelope: Envelope, position: int | None = None, node: str = "", *, as_json: bool = False
) -> str:
    """One line for an event: as ``ctr events`` has it, or JSON with all that is known of it."""
    event = envelope.event
    message = unpack(event) if event else None
    body = plain(message) if message is not None else None
    if not as_json:
        happened = digits(envelope.timestamp, " ") + " +0000 UTC"
        names = map(printable, (node, happened, envelope.namespace, envelope.topic))
        return " ".join([*filter(None, names), line(body or {})])
    document = {
        "node": node,
        "position": position,
        "timestamp": digits(envelope.timestamp, "T") + "Z",
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "type": event.type_url if event else None,
        "event": body,
    }
    if event and message is None:
        document["value"] = base64.b64encode(event.value).decode()
    return json.dumps({key: value for key, value in document.items() if value not in ("", None)})
