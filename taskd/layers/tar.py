"""Tar archives, read as Go's ``archive/tar`` reads them: ustar, PAX, GNU and what came before.

The standard library's ``tarfile`` takes some 100 µs for a header, of which an image has tens of
thousands, and is laxer than Go: what it takes for the end of an archive may be damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from taskd.layers import sparse
from taskd.layers.errors import UNEXPECTED_EOF, Refused
from taskd.layers.fields import INVALID, SIZE, decimal, nanoseconds, number, octal, text
from taskd.layers.streams import Source

__all__ = ["BLOCK", "CHAR", "DIR", "FIFO", "LINK", "REG", "SYMLINK", "Entry", "entries"]

REG, LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_OLD_REG, _SPARSE = b"\0", b"S"
_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_SPECIAL = {_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK}
_WITHOUT_DATA = {LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO}

_ZEROS = bytes(SIZE)
_LARGEST = 1 << 20
"""Bytes of a name, or of PAX's records: more is refused, as in Go."""

_XATTR = b"SCHILY.xattr."


class Entry:
    """One file of an archive. Times are nanoseconds since the epoch.

    A plain class: `dataclasses` takes 10 ms to import, and a process does not live much longer.
    """

    __slots__ = (
        *("atime", "gid", "linkname", "major", "map", "minor", "mode", "mtime", "name"),
        *("size", "type", "uid", "xattrs"),
    )

    def __init__(self, header: bytes, kind: bytes, size: int) -> None:
        """What stands in the header itself. Raises `Refused`."""
        self.name = text(header[:100])
        self.type = kind
        self.mode = number(header[100:108])
        self.uid = number(header[108:116])
        self.gid = number(header[116:124])
        self.size = size
        """Bytes of the file."""
        self.mtime = number(header[136:148]) * 10**9
        self.atime: int | None = None
        self.linkname = text(header[157:257])
        self.major = self.minor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.map: sparse.Map | None = None
        """Where the bytes in the archive belong, if it is sparse; else they are the file's."""
        magic = header[257:265]
        if magic[:6] == b"ustar\0":
            if prefix := text(header[345:476] if header[508:] == b"tar\0" else header[345:500]):
                self.name = prefix + b"/" + self.name
        elif magic == b"ustar  \0":
            if header[345]:
                with suppress(Refused):  # some have a prefix there
                    self.atime = number(header[345:357]) * 10**9
        else:
            return
        if kind in (CHAR, BLOCK):
            self.major = number(header[329:337])
            self.minor = number(header[337:345])


class _Told:
    """What was said before an entry's header."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.points: list[tuple[bytes, bytes]] = []
        """Of sparse files in the oldest form, in which one key has many values."""
        self.name: bytes | None = None
        self.link: bytes | None = None

    def hear(self, kind: bytes, data: bytes) -> None:
        if kind == _LONG_NAME:
            self.name = text(data)
        elif kind == _LONG_LINK:
            self.link = text(data)
        elif kind == _PAX:  # what holds for all entries means nothing to Go
            self.records, self.points = _records(data)


def entries(source: Source) -> Iterator[Entry]:
    """Each entry, while `source` stands at its data, of which any part may be read.

    Raises `Refused`.
    """
    told: _Told | None = None
    while (header := _header(source)) is not None:
        kind = header[156:157]
        size = number(header[124:136])
        if kind in _SPECIAL:
            if not 0 <= size <= _LARGEST:
                raise Refused("archive/tar: header field too long" if size > 0 else INVALID)
            data = source.exactly(size)
            source.skip(-size % SIZE)
            told = told or _Told()
            told.hear(kind, data)
            continue
        entry = Entry(header, kind, size)
        if told is not None:
            _merge(entry, told)
        if kind == _OLD_REG:
            entry.type = DIR if entry.name.endswith(b"/") else REG
        if entry.type in _WITHOUT_DATA:
            entry.size = 0
        elif entry.size < 0:
            raise Refused(INVALID)
        size = entry.size
        if kind == _SPARSE:
            entry.type = REG
            entry.map, entry.size = sparse.in_headers(header, source)
        end = source.offset + size
        if told is not None and entry.type == REG and entry.map is None:
            found, real = sparse.in_records(told.records, told.points, source)
            if found is not None:
                entry.map, entry.size = found, real
                entry.name = told.records.get(b"GNU.sparse.name") or entry.name
        told = None
        yield entry
        if source.offset > end:
            raise Refused(INVALID)
        source.skip(end - source.offset)
        source.read(-size % SIZE)  # with which Go is content to end


def _header(source: Source) -> bytes | None:
    """The next one that is none of zeros; None at the end, which need not be said."""
    header = source.read(SIZE)
    if not header:
        return None
    if len(header) < SIZE:
        raise Refused(UNEXPECTED_EOF)
    if header == _ZEROS:
        header = source.read(SIZE)
        if not header or header == _ZEROS:
            return None
        raise Refused(UNEXPECTED_EOF if len(header) < SIZE else INVALID)
    said = octal(header[148:156])
    rest = header[:148] + header[156:]
    # Some have added up signed bytes.
    if said != sum(rest) + 256 and said != sum(b - 256 * (b > 127) for b in rest) + 256:
        raise Refused(INVALID)
    return header


def _merge(entry: Entry, told: _Told) -> None:
    """What PAX and GNU say of an entry; an empty value of PAX's says nothing."""
    for key, value in told.records.items():
        if key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.linkname = value
        elif key == b"size":
            entry.size = decimal(value)
        elif key == b"uid":
            entry.uid = decimal(value)
        elif key == b"gid":
            entry.gid = decimal(value)
        elif key == b"mtime":
            entry.mtime = nanoseconds(value)
        elif key == b"atime":
            entry.atime = nanoseconds(value)
    if told.name is not None:
        entry.name = told.name
    if told.link is not None:
        entry.linkname = told.link


def _records(data: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    records: dict[bytes, bytes] = {}
    points: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        digits = data[at : at + 8].partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 7:
            raise Refused(INVALID)
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if end > len(data) or not key or not equals or data[end - 1 : end] != b"\n":
            raise Refused(INVALID)
        if b"\0" in (value if key in (b"path", b"linkpath", b"uname", b"gname") else key):
            raise Refused(INVALID)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            points.append((key, value))
        else:
            records[key] = value
        at = end
    return records, points
