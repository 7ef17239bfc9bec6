"""Tar archives as Go's ``archive/tar`` writes them, byte for byte: a layer has the same digest.

ustar where it is enough, and PAX where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskd.layers.fields import SIZE
from taskd.layers.tar import REG

__all__ = ["END", "Header", "padding"]

END = bytes(2 * SIZE)
"""Of an archive."""

_PAX = b"x"
_NAME, _PREFIX = 100, 155


@dataclass(slots=True)
class Header:
    """What is written before a file's data. `mtime` is in seconds since the epoch."""

    name: bytes
    type: bytes = REG
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: bytes = b""
    major: int = 0
    minor: int = 0
    records: dict[bytes, bytes] = field(default_factory=dict)
    """Of PAX's, those that are no field."""

    def encoded(self) -> bytes:
        """The blocks, with those that PAX needs before."""
        records = self._records()
        split = _split(self.name)
        needs_pax = bool(self.records) or any(
            not (key == b"path" and split is not None) for key in records
        )
        if not needs_pax:
            prefix, name = split or (b"", self.name)
            return self._block(name, self.linkname, prefix)
        records |= self.records
        data = b"".join(_record(key, records[key]) for key in sorted(records))
        folder, _, file = self.name.rpartition(b"/")
        parts = [part for part in (*folder.split(b"/"), b"PaxHeaders.0", file) if part]
        called = (b"/" if folder.startswith(b"/") else b"") + b"/".join(parts)
        extra = Header(_ascii(called)[:_NAME].rstrip(b"/"), _PAX, size=len(data))
        return b"".join(
            (
                extra._block(extra.name, b"", b""),
                data,
                padding(len(data)),
                self._block(_ascii(self.name), _ascii(self.linkname), b""),
            )
        )

    def _records(self) -> dict[bytes, bytes]:
        """What does not fit into its field."""
        found = {}
        for key, text in ((b"path", self.name), (b"linkpath", self.linkname)):
            if len(text) > _NAME or not text.isascii():
                found[key] = text
        numbers = ((b"uid", self.uid, 8), (b"gid", self.gid, 8), (b"size", self.size, 12))
        for key, number, width in (*numbers, (b"mtime", self.mtime, 12)):
            if not _fits(number, width):
                found[key] = b"%d" % number
        return found

    def _block(self, name: bytes, linkname: bytes, prefix: bytes) -> bytes:
        block = b"".join(
            (
                _text(name, _NAME),
                _number(self.mode, 8),
                _number(self.uid, 8),
                _number(self.gid, 8),
                _number(self.size, 12),
                _number(self.mtime, 12),
                b"        ",
                self.type,
                _text(linkname, _NAME),
                b"ustar\x0000",
                bytes(64),
                b"" if self.type == _PAX else _number(self.major, 8) + _number(self.minor, 8),
                _text(prefix, _PREFIX),
            )
        ).ljust(SIZE, b"\0")
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size: int) -> bytes:
    """What comes after so many bytes."""
    return bytes(-size % SIZE)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """A long name as ustar has it, in two parts; None if that cannot be, or need not."""
    if len(name) <= _NAME or not name.isascii():
        return None
    length = len(name)
    if length > _PREFIX + 1:
        length = _PREFIX + 1
    elif name.endswith(b"/"):
        length -= 1
    at = name[:length].rfind(b"/")
    rest = len(name) - at - 1
    if at <= 0 or rest > _NAME or rest == 0 or at > _PREFIX:
        return None
    return name[:at], name[at + 1 :]


def _fits(number: int, width: int) -> bool:
    return 0 <= number < 1 << (3 * (width - 1))


def _number(number: int, width: int) -> bytes:
    if not _fits(number, width):
        number = 0  # a record says it
    return b"%0*o\0" % (width - 1, number)


def _text(text: bytes, width: int) -> bytes:
    found = text[:width].ljust(width, b"\0")
    if len(text) > width and found.endswith(b"/"):
        # Some take what ends so for a folder.
        found = text[: width - 1].rstrip(b"/").ljust(width, b"\0")
    return found


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(each for each in text if each < 0x80)


def _record(key: bytes, value: bytes) -> bytes:
    """With its own length before it, digits and all."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d" % length + rest
