#!/bin/sh
# isal 1.9.1 (Python), beside zlib: a member of gzip whose header has optional fields, and comes in two pieces.
#
# Guess: as with zlib, whose interface it has, it does not matter where a stream is cut, so that a program may hand
# on what it reads, as it reads it.
# Seen: an extra field alone, a name alone, a comment alone, and no field at all are read wherever the cut is. An extra
# field with anything after it, cut before the field is whole, is "Invalid deflate block", and a checksum of the
# header (FHCRC), cut anywhere before its end, is "Incorrect checksum". In one piece, all are read.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check isal==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import gzip
import struct
import sys
import zlib

from isal import igzip_lib, isal_zlib

DATA = b"some data" * 9
EXTRA, NAME, COMMENT, CHECKSUM = 4, 8, 16, 2


def header(flags):
    made = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff"
    if flags & EXTRA:
        made += struct.pack("<H", 6) + b"BC\2\0ab"
    if flags & NAME:
        made += b"name\0"
    if flags & COMMENT:
        made += b"comment\0"
    if flags & CHECKSUM:
        made += struct.pack("<H", zlib.crc32(made) & 0xFFFF)
    return made


def refused(make, flags):
    """The error that there is for each cut for which there is one."""
    found = {}
    member = header(flags) + gzip.compress(DATA)[10:]
    for cut in range(len(member)):
        decompressor = make()
        try:
            assert decompressor.decompress(member[:cut]) + decompressor.decompress(member[cut:]) == DATA
        except (zlib.error, isal_zlib.error) as error:
            found.setdefault(str(error).split(maxsplit=2)[2], []).append(cut)
    return {error: (cuts[0], cuts[-1]) for error, cuts in found.items()}


KINDS = {
    "no field": 0,
    "an extra field": EXTRA,
    "a name": NAME,
    "a comment": COMMENT,
    "an extra field and a name": EXTRA | NAME,
    "a checksum": CHECKSUM,
}
DECOMPRESSORS = {
    "zlib": lambda: zlib.decompressobj(wbits=31),
    "isal_zlib": lambda: isal_zlib.decompressobj(wbits=31),
    "igzip_lib": lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP),
}
found = {who: {kind: refused(make, flags) for kind, flags in KINDS.items()} for who, make in DECOMPRESSORS.items()}
for who, kinds in found.items():
    for kind, errors in kinds.items():
        print(f"{who}, {kind} ({len(header(KINDS[kind]))} bytes):", errors or "read wherever it is cut")
none = dict.fromkeys(KINDS, {})
isal = none | {
    "an extra field and a name": {"Invalid deflate block found": (10, 17)},
    "a checksum": {"Incorrect checksum found": (1, 11)},
}
sys.exit(found != {"zlib": none, "isal_zlib": isal, "igzip_lib": isal})
PYTHON
