"""Reading and writing tar, beside the standard library."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from harness.layers import device, fifo, file, folder, link, symlink, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from taskd.layers.errors import Refused
from taskd.layers.streams import Source
from taskd.layers.tar import LINK, REG, SYMLINK, Entry, entries
from taskd.layers.writing import END, Header, padding


@contextmanager
def source(data: bytes, *, limit: int = 1 << 40) -> Iterator[Source]:
    blob = os.memfd_create("blob")
    try:
        os.write(blob, data)
        os.lseek(blob, 0, os.SEEK_SET)
        opened = Source(blob, sniff=True, limit=limit)
        yield opened
    finally:
        with suppress(Refused):
            opened.finish()  # its thread has the descriptor's number
        os.close(blob)


def read(archive: bytes) -> list[tuple[Entry, bytes]]:
    with source(archive) as opened:
        return [(each, opened.read(each.size)) for each in entries(opened)]


PATHS = st.text("ab/é.\udcff", min_size=1, max_size=300).filter(lambda text: "//" not in text)
NUMBERS = st.integers(0, 1 << 40)
MEMBERS = st.builds(
    lambda name, data, **fields: file(name.strip("/") or "x", data, **fields),
    PATHS,
    st.binary(max_size=2000),
    uid=NUMBERS,
    gid=NUMBERS,
    mode=st.integers(0, 0o7777),
    # What is smaller it writes as 1e-05, which Go does not read.
    mtime=st.just(0.0) | st.floats(0.001, 1e9).map(lambda seconds: round(seconds, 6)),
)
FORMS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@settings(max_examples=60, deadline=None)
@given(st.lists(MEMBERS, max_size=5), FORMS)
def test_what_tarfile_writes(members: list[Any], form: int) -> None:
    archive = tar(*members, format=form)
    found = read(archive)
    for (member, data), (entry, content) in zip(members, found, strict=True):
        assert os.fsdecode(entry.name) == member.name
        assert (entry.uid, entry.gid, entry.mode) == (member.uid, member.gid, member.mode)
        assert content == data
        exact = member.mtime if form == tarfile.PAX_FORMAT else int(member.mtime)
        assert abs(entry.mtime - exact * 1e9) < 1000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2047), st.sampled_from(range(4)))
def test_damage_is_told(noise: bytes, at: int, which: int) -> None:
    """Whatever is written over an archive, it is read or refused."""
    archive = [
        tar(file("x" * 150, b"data", uid=1 << 30)),
        tar(file("x" * 150, b"data"), format=tarfile.GNU_FORMAT),
        tar(folder("a"), link("b", "c" * 120), format=tarfile.GNU_FORMAT),
        tar(file("a", pax_headers={"GNU.sparse.map": "0,1,5,2", "GNU.sparse.size": "9"})),
    ][which]
    changed = archive[:at] + noise + archive[at + len(noise) :]
    with suppress(Refused):
        read(changed)


@settings(max_examples=100, deadline=None)
@given(
    name=st.text("abcdefgh/é", min_size=1, max_size=280).map(lambda text: text.strip("/") or "a"),
    kind=st.sampled_from([REG, LINK, SYMLINK]),
    numbers=st.tuples(NUMBERS, NUMBERS, st.integers(-(10**6), 1 << 40)),
    target=st.text("abcé", max_size=150),
    records=st.dictionaries(st.sampled_from([b"SCHILY.xattr.security.capability"]), st.binary()),
)
def test_what_is_written_is_read(
    name: str, kind: bytes, numbers: Any, target: str, records: dict[bytes, bytes]
) -> None:
    uid, gid, mtime = numbers
    linkname = b"" if kind == REG else target.encode()
    data = b"data" if kind == REG else b""
    header = Header(
        *(name.encode(), kind, 0o4755, uid, gid, len(data), mtime, linkname), records=records
    )
    archive = header.encoded() + data + (padding(len(data)) if data else b"") + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        member = opened.next()
        assert member is not None
        assert member.name == name
        assert (member.uid, member.gid, member.mtime) == (uid, gid, mtime)
        assert (member.mode, member.type, member.size) == (0o4755, kind, len(data))
        assert os.fsencode(member.linkname) == linkname
        assert opened.next() is None
    ((entry, content),) = read(archive)
    assert (entry.name, entry.linkname, content) == (name.encode(), linkname, data)
    assert entry.xattrs == {key.removeprefix(b"SCHILY.xattr."): records[key] for key in records}


def test_kinds() -> None:
    members = [symlink("s", "t" * 200), device("d", 8, 300), fifo("f"), folder("g")]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = [entry for entry, _ in read(tar(*members, format=form))]
        assert [each.type for each in found] == [b"2", b"3", b"6", b"5"]
        assert found[0].linkname == b"t" * 200
        assert (found[1].major, found[1].minor) == (8, 300)


@pytest.mark.parametrize("count", [1 << 20, (1 << 20) + 1])
def test_what_is_told_of_a_file_is_bounded(count: int) -> None:
    """Names and records beyond a megabyte are refused, as in Go."""
    member, _ = file("x", b"n" * count, type=tarfile.GNUTYPE_LONGNAME)
    member.size = count
    archive = member.tobuf(tarfile.GNU_FORMAT) + b"n" * count + bytes(-count % 512)
    archive += tar(file("x"))
    if count > 1 << 20:
        with pytest.raises(Refused, match="header field too long"):
            read(archive)
    else:
        assert read(archive)[0][0].name == b"n" * count


def test_old_archives() -> None:
    """From before ustar a folder is what ends in a slash."""
    member, _ = folder("d/")
    member.type = tarfile.AREGTYPE
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[257:265] = bytes(8)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    ((entry, _),) = read(bytes(header))
    assert (entry.type, entry.name) == (b"5", b"d/")


def test_members_of_gzip_whose_headers_are_read_in_two() -> None:
    """Headers with all that gzip has for them, wherever a block of the blob ends."""
    archive = tar(file("a", b"x" * 3000))
    last = gzipped(archive[1000:], extra=b"x" * 6)
    for cut in range(1, len(last)):
        filled = (128 << 10) - cut
        blob = gzipped(archive[:1000], extra=bytes(60_000)) + gzipped(b"", extra=bytes(60_000))
        blob += gzipped(b"", extra=bytes(filled - len(blob) - len(gzipped(b"", extra=b""))))
        assert len(blob) == filled
        with source(blob + last) as opened:
            assert opened.read(1 << 20) == archive


def gzipped(data: bytes, *, extra: bytes) -> bytes:
    """One member, with an extra field, a name, a comment, and a checksum of its header."""
    header = b"\x1f\x8b\x08\x1e" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra
    header += b"layer.tar\0of a test\0"
    return header + struct.pack("<H", zlib.crc32(header) & 0xFFFF) + gzip.compress(data)[10:]
