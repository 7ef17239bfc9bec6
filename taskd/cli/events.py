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

from taskd import durations
from taskd.client import Event, connect
from taskd.errors import InvalidArgument, Unavailable
from taskd.plain import digits, line, plain, rfc3339
from taskd.printable import printable

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
    position = start.after
    while True:
        try:
            async with connect(address, patience=0) as client:
                stream = client.events(
                    *filters,
                    since=start.since,
                    after=position,
                    follow=follow,
                    everywhere=True,
                    reconnect=reconnect,
                )
                try:
                    async for event in stream:
                        print(show(event, as_json=as_json))
                        sys.stdout.flush()
                finally:
                    position = stream.position
                return
        except Unavailable as exc:
            if not reconnect:
                where_to = "" if position is None else f"; go on with --after {position}"
                raise Unavailable(f"no daemon at {address}{where_to}", verbatim=True) from exc
        await anyio.sleep(RETRY_SECONDS)


def moment(text: str) -> int:
    """Nanoseconds since the epoch of a time (RFC 3339) or of so long ago (``10m``).

    Raises `InvalidArgument`.
    """
    try:
        ago = timedelta(seconds=durations.seconds(text))
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


def show(event: Event, node: str = "", *, as_json: bool = False) -> str:
    """One line for an event: as ``ctr events`` has it, or JSON with all that is known of it."""
    body = plain(event.message) if event.message is not None else None
    if not as_json:
        happened = digits(event.at, " ") + " +0000 UTC"
        names = map(printable, (node, happened, event.namespace, event.topic))
        return " ".join([*filter(None, names), line(body or {})])
    document = {
        "node": node,
        "position": event.position,
        "timestamp": rfc3339(event.at),
        "namespace": event.namespace,
        "topic": event.topic,
        "type": event.raw.type_url if event.raw else None,
        "event": body,
    }
    if event.raw and event.message is None:
        document["value"] = base64.b64encode(event.raw.value).decode()
    return json.dumps({key: value for key, value in document.items() if value not in ("", None)})
