"""Messages for people and for tools: as Go's JSON has them."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import betterproto2

from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import Timestamp
from taskd.types import TypedValue
from taskd.wellknown import nanoseconds, unpack

__all__ = ["digits", "line", "plain", "rfc3339"]


def plain(value: Any, *, opened: bool = False) -> Any:
    """A message's names of fields as in the proto, and nothing that is empty.

    `opened` shows what is in an Any, if it is a message that is known, or JSON.
    """
    match value:
        case Timestamp():
            return rfc3339(nanoseconds(value))
        case AnyMessage() if opened:
            return {"@type": value.type_url, **_opened(value)}
        case betterproto2.Message():
            fields = ((name, each) for name, each in vars(value).items() if name[0] != "_")
            found = {name: plain(each, opened=opened) for name, each in fields}
            return {name: each for name, each in found.items() if each not in (None, "", 0, [], {})}
        case dict():
            return {key: plain(each, opened=opened) for key, each in value.items()}
        case list():
            return [plain(each, opened=opened) for each in value]
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value


def _opened(value: AnyMessage) -> dict[str, Any]:
    message = unpack(TypedValue(value.type_url, value.value))
    if message is not None:
        found: dict[str, Any] = plain(message, opened=True)
        return found
    with suppress(ValueError):
        return {"value": json.loads(value.value)}
    return {"value": base64.b64encode(value.value).decode()}


def line(value: Any) -> str:
    """Compact JSON that shows whole on one line of a terminal."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    """A character of JSON that shows, or else its escape sequence there."""
    return character if character.isprintable() else json.dumps(character)[1:-1]


def digits(nanos: int, separator: str) -> str:
    """A time as Go prints it: as many digits of a second as it needs."""
    seconds, rest = divmod(nanos, 10**9)
    day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{day.year:04}-{day:%m-%d}{separator}{day:%H:%M:%S}{fraction}"


def rfc3339(nanos: int) -> str:
    """A time as JSON has it: ``2026-01-02T03:04:05.6Z``."""
    return digits(nanos, "T") + "Z"
