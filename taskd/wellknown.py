"""Protobuf's well-known types, to and from the domain's."""

from __future__ import annotations

import betterproto2

import taskd.proto.containerd.events  # noqa: F401 - what `unpack` knows
from taskd.codec import MalformedMessage, decode, encode
from taskd.proto.google.protobuf import Any, Timestamp
from taskd.proto.message_pool import default_message_pool
from taskd.types import TypedValue

__all__ = ["GO_ZERO", "from_any", "nanoseconds", "pack", "timestamp", "to_any", "unpack"]

GO_ZERO = -62135596800 * 10**9
"""Nanoseconds since the epoch of Go's zero time, which means none."""


def to_any(value: TypedValue | None) -> Any | None:
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def from_any(message: Any | None) -> TypedValue | None:
    return None if message is None else TypedValue(message.type_url, message.value)


def pack(message: betterproto2.Message) -> TypedValue:
    """Serialise `message` under its full name, without a host, as containerd's typeurl does."""
    type_url = default_message_pool.type_to_url[type(message)]
    return TypedValue(type_url.rpartition("/")[2], encode(message))


def unpack(value: TypedValue) -> betterproto2.Message | None:
    """The message in `value`, if its type is an event of containerd's and its bytes are sound."""
    name = value.type_url.rpartition("/")[2]
    message_type = default_message_pool.url_to_type.get(f"type.googleapis.com/{name}")
    if message_type is None:
        return None
    try:
        return decode(message_type, value.value)
    except MalformedMessage:
        return None


def timestamp(nanoseconds: int) -> Timestamp:
    """Timestamp of `nanoseconds` since the epoch."""
    seconds, nanos = divmod(nanoseconds, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)


def nanoseconds(message: Timestamp | None) -> int:
    """Nanoseconds since the epoch; Go's zero time for a timestamp that is absent."""
    if message is None:
        return GO_ZERO
    return message.seconds * 10**9 + message.nanos
