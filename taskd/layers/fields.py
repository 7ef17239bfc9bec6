"""The fields of a tar header, and of what goes with it. Raises `Refused` for what is none."""

from __future__ import annotations

from taskd.layers.errors import Refused

__all__ = ["INVALID", "SIZE", "decimal", "nanoseconds", "number", "octal", "text"]

SIZE = 512
"""Bytes of a header, of which everything is a multiple."""
INVALID = "archive/tar: invalid tar header"
_MAX = (1 << 63) - 1


def text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def number(data: bytes) -> int:
    """Octal digits, or a binary number as long as the field."""
    if not data[0] & 0x80:
        return octal(data)
    found = int.from_bytes(bytes((data[0] & 0x7F,)) + data[1:], "big")
    if data[0] & 0x40:
        found -= 1 << (8 * len(data) - 1)
    if not -_MAX <= found <= _MAX:
        raise Refused(INVALID)
    return found


def octal(data: bytes) -> int:
    digits = data.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise Refused(INVALID)
    return int(digits, 8)


def decimal(value: bytes) -> int:
    digits = value.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or int(digits) > _MAX:
        raise Refused(INVALID)
    return int(value)


def nanoseconds(value: bytes) -> int:
    """Seconds with a fraction; what is smaller than a nanosecond is cut off."""
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 19 or fraction.strip(b"0123456789"):
        raise Refused(INVALID)
    nanos = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -nanos if value.startswith(b"-") else nanos
