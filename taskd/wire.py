"""Protobuf's encoding, below the level of messages: tags, numbers, lengths. Strict.

Source: protobuf's encoding guide; what is refused is what Go's and Google's own parsers refuse.
"""

from __future__ import annotations

from functools import lru_cache

from taskd.errors import InvalidArgument

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "BYTES",
    "FIXED32",
    "FIXED64",
    "VARINT",
    "Field",
    "MalformedMessage",
    "bytes_field",
    "fields",
    "read_varint",
    "signed",
    "tag",
    "varint",
]

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
START_GROUP: Final = 3
END_GROUP: Final = 4
FIXED32: Final = 5

_MAX_FIELD_NUMBER: Final = (1 << 29) - 1
_MAX_DEPTH: Final = 100
UINT64: Final = (1 << 64) - 1

Field = tuple[int, "int | bytes", int, int]
"""A field's tag, its value (a number, or bytes of whatever length), and where it starts and ends.

The value of a group, which nobody uses, is empty.
"""


class MalformedMessage(InvalidArgument):
    """Bytes that are not the message they should be."""

    def __init__(self, reason: str, *, verbatim: bool = False) -> None:
        self.reason = reason
        super().__init__(reason, verbatim=verbatim)


def tag(number: int, kind: int) -> int:
    """What introduces a field: its number and the kind of its value."""
    return number << 3 | kind


def varint(value: int) -> bytes:
    """A number of at most 64 bits; a negative one as its two's complement."""
    if 0 <= value < 0x80:
        return _SHORT[value]
    return _long(value)


_SHORT: Final = [bytes((value,)) for value in range(0x80)]


@lru_cache(maxsize=1024)
def _long(value: int) -> bytes:
    # The same pids and times come again and again.
    value &= UINT64
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def bytes_field(number: int, value: bytes) -> bytes:
    return b"".join((varint(tag(number, BYTES)), varint(len(value)), value))


def signed(value: int, bits: int) -> int:
    """The number that the lowest `bits` of `value` are, in two's complement."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def fields(data: bytes) -> list[Field]:
    """All fields of a message. Raises `MalformedMessage`."""
    found: list[Field] = []
    position, size = 0, len(data)
    value: int | bytes
    while position < size:
        start = position
        # Most numbers have one byte, and a call for each of them would be half of the time.
        key = data[position]
        if 0x08 <= key < 0x80:
            position += 1
        else:
            key, position = _read_tag(data, position)
        kind = key & 7
        if kind == BYTES:
            if position < size and data[position] < 0x80:
                length = data[position]
                position += 1
            else:
                length, position = read_varint(data, position)
            end = position + length
            if end > size:
                raise MalformedMessage("truncated field")
            value = data[position:end]
            position = end
        elif kind == VARINT:
            value, position = read_varint(data, position)
        elif kind in (FIXED32, FIXED64):
            end = position + (4 if kind == FIXED32 else 8)
            if end > size:
                raise MalformedMessage("truncated field")
            value = data[position:end]
            position = end
        else:
            value = b""
            position = _skip_group(data, position, key)
        found.append((key, value, start, position))
    return found


def _read_tag(data: bytes, position: int) -> tuple[int, int]:
    key, position = read_varint(data, position)
    if not 1 <= key >> 3 <= _MAX_FIELD_NUMBER:
        raise MalformedMessage(f"field number {key >> 3}")
    return key, position


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number that begins at `position`, and where it ends. Raises `MalformedMessage`."""
    try:
        byte = data[position]
        if byte < 0x80:
            return byte, position + 1
        value = shift = 0
        while byte >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise MalformedMessage("number of more than 64 bits")
            position += 1
            byte = data[position]
    except IndexError:
        raise MalformedMessage("truncated number") from None
    value |= byte << shift
    if value > UINT64:
        raise MalformedMessage("number of more than 64 bits")
    return value, position + 1


def _skip_group(data: bytes, position: int, key: int) -> int:
    """Where the group that `key` introduces, and that goes on at `position`, ends."""
    groups: list[int] = []
    while True:
        kind = key & 7
        if kind == VARINT:
            _, position = read_varint(data, position)
        elif kind == FIXED64:
            position += 8
        elif kind == FIXED32:
            position += 4
        elif kind == BYTES:
            length, position = read_varint(data, position)
            position += length
        elif kind == START_GROUP and len(groups) < _MAX_DEPTH:
            groups.append(key >> 3)
        elif kind != END_GROUP or not groups or groups.pop() != key >> 3:
            raise MalformedMessage(f"wire type {kind}")
        if position > len(data):
            raise MalformedMessage("truncated field")
        if not groups:
            return position
        key, position = _read_tag(data, position)
