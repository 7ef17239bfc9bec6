"""GNU tar's sparse files: where in a file the bytes of an archive belong.

Source: "Storing Sparse Files" in GNU tar's manual.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskd.layers.errors import Refused
from taskd.layers.fields import INVALID, SIZE, decimal, number
from taskd.layers.streams import Source

__all__ = ["Map", "in_headers", "in_records"]

Map = Sequence[tuple[int, int]]
"""Offset and length of each piece, in bytes and in order."""

_PIECES = 1 << 18
"""More of them are refused: they have to be remembered."""


def in_headers(header: bytes, source: Source) -> tuple[Map, int]:
    """The map in a header of type ``S``, and in those that go on with it; and the file's size."""
    size = number(header[483:495])
    fields, more = header[386:482], header[482]
    numbers: list[int] = []
    while True:
        for at in range(0, len(fields) - 23, 24):
            if not fields[at]:
                break
            numbers += number(fields[at : at + 12]), number(fields[at + 12 : at + 24])
        if not more or len(numbers) > 2 * _PIECES:
            return _checked(numbers, size), size
        block = source.exactly(SIZE)
        fields, more = block[:504], block[504]


def in_records(
    records: dict[bytes, bytes], points: Sequence[tuple[bytes, bytes]], source: Source
) -> tuple[Map | None, int]:
    """The map in PAX's records (0.0, 0.1), or else before the data (1.0); and the file's size.

    None, and any size, if they tell of no sparse file.
    """
    size = decimal(records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size") or b"0")
    version = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if version == (b"1", b"0"):
        return _checked(_leading(source), size), size
    if b"GNU.sparse.map" in records:
        numbers = [decimal(each) for each in records[b"GNU.sparse.map"].split(b",") if each]
    elif points:
        numbers = [decimal(value) for _, value in points]
        if [key[11:] for key, _ in points] != [b"offset", b"numbytes"] * (len(points) // 2):
            raise Refused(INVALID)
    else:
        return None, 0
    count = records.get(b"GNU.sparse.numblocks")
    if count is not None and decimal(count) * 2 != len(numbers):
        raise Refused(INVALID)
    return _checked(numbers, size), size


def _leading(source: Source) -> list[int]:
    """Numbers, a line each, of which the first says how many pairs follow; padded with zeros."""
    numbers: list[int] = []
    wanted, rest = 1, b""
    while len(numbers) < wanted:
        *lines, rest = (rest + source.exactly(SIZE)).split(b"\n")
        numbers += map(decimal, lines[: wanted - len(numbers)])
        if wanted == 1 and numbers:
            wanted += 2 * numbers[0]
            numbers += map(decimal, lines[1:wanted])
        if wanted > 2 * _PIECES or len(rest) > SIZE:
            raise Refused(INVALID)
    return numbers[1:]


def _checked(numbers: list[int], size: int) -> Map:
    found = list(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in found:
        if offset < end or length < 0 or offset + length > size:
            raise Refused(INVALID)
        end = offset + length
    if len(numbers) % 2 or len(found) > _PIECES:
        raise Refused(INVALID)
    return found
