"""What SQLite's write-ahead log had, to tell what of it SQLite has left out.

SQLite takes a log up to the first page whose checksum does not fit, and says nothing of the rest:
a commit that a crash has cut short, or all that follows a damaged one.

Source: SQLite's file format, section 4, "The Write-Ahead Log".
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["lost", "read"]

_HEADER = struct.Struct(">IIII4s4sII")  # magic, version, page size, number, salts, checksums
_FRAME = struct.Struct(">II4s4sII")  # page, size of the file after a commit, salts, checksums
_LITTLE_ENDIAN = 0x377F0682
"""Magic number; one more for checksums that are big-endian."""


def read(path: Path) -> bytes:
    """What there is of a log, before SQLite opens it; nothing if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def lost(log: bytes, taken: int) -> str:
    """What a log had besides the `taken` pages that SQLite has found good, in words; or nothing."""
    if len(log) <= _HEADER.size + _FRAME.size:
        return ""
    if not _is_whole(log[: _HEADER.size]):
        return f"its log of {len(log)} bytes is damaged, and lost as far as it was needed"
    _, _, page_size, _, *salts, _, _ = _HEADER.unpack_from(log)
    pages = commits = 0
    whole = False
    for number, offset in enumerate(range(_HEADER.size, len(log), _FRAME.size + page_size)):
        if number < taken or len(log) - offset < _FRAME.size:
            continue
        _, size_after, *own, _, _ = _FRAME.unpack_from(log, offset)
        # Where neither half is the log's, the page is from before it was last begun anew.
        if own[0] == salts[0] or own[1] == salts[1]:
            pages += 1
            commits += size_after > 0
            whole = offset + _FRAME.size + page_size <= len(log)
    if commits > 1:
        return f"its log is damaged: {commits} commits of {pages} pages are lost"
    if commits and whole:
        return f"undone a commit of {pages} pages that was cut short or damaged"
    return f"undone a commit of {pages} pages that was cut short" if pages else ""


def _is_whole(header: bytes) -> bool:
    magic, *_, first, second = _HEADER.unpack(header)
    order = "<" if magic == _LITTLE_ENDIAN else ">"
    words = struct.unpack(f"{order}6I", header[:24])
    one = two = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return magic & ~1 == _LITTLE_ENDIAN and (one, two) == (first, second)
