"""Layers for tests: archives with whatever is to be in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from taskd.diff.child import Told

__all__ = [
    "LAYER",
    "TIME",
    "Apply",
    "Member",
    "device",
    "fifo",
    "file",
    "folder",
    "link",
    "symlink",
    "tar",
    "tree",
    "variants",
]

LAYER = "application/vnd.oci.image.layer.v1.tar"
Apply = Callable[..., Awaitable[Told]]
"""What unpacks bytes onto mounts."""
Member = tuple[tarfile.TarInfo, bytes]

TIME = 1_500_000_000


def file(name: str, data: bytes = b"", **fields: Any) -> Member:
    return _member(name, tarfile.REGTYPE, data, **fields)


def folder(name: str, **fields: Any) -> Member:
    return _member(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str, **fields: Any) -> Member:
    return _member(name, tarfile.SYMTYPE, linkname=target, **fields)


def link(name: str, target: str, **fields: Any) -> Member:
    return _member(name, tarfile.LNKTYPE, linkname=target, **fields)


def fifo(name: str, **fields: Any) -> Member:
    return _member(name, tarfile.FIFOTYPE, **fields)


def device(name: str, major: int, minor: int, *, block: bool = False, **fields: Any) -> Member:
    kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
    return _member(name, kind, devmajor=major, devminor=minor, **fields)


def _member(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Member:
    """`xattrs` and other records of PAX's are in the field ``pax_headers``."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mtime = kind, len(data), TIME
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def variants(archive: bytes) -> dict[str, bytes]:
    """The same in each form in which layers come, by what their media type ends in."""
    return {
        "": archive,
        "+gzip": gzip.compress(archive, 1, mtime=0),
        "+zstd": zstd.compress(archive),
    }


def tree(root: Path) -> list[str]:
    """What is in a folder: of each thing its name, mode, owner, time, attributes and content."""
    return [_shown(root, path) for path in sorted([root, *root.rglob("*")])]


def _shown(root: Path, path: Path) -> str:
    state = path.lstat()
    found = [str(path.relative_to(root)), oct(state.st_mode), f"{state.st_uid}:{state.st_gid}"]
    # What was made on the way, and not named, has the time at which it was.
    recent = state.st_mtime > TIME * 1.1
    found.append("now" if recent else f"{state.st_mtime_ns / 1e9:.9f}")
    if path.is_symlink():
        found.append(f"-> {path.readlink()}")
    elif path.is_file():
        data = path.read_bytes()
        found.append(
            repr(data)
            if len(data) < 99
            else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:8]}"
        )
        if state.st_nlink > 1:
            others = [str(each.relative_to(root)) for each in root.rglob("*")]
            same = [each for each in others if (root / each).lstat().st_ino == state.st_ino]
            found.append(f"= {sorted(same)}")
    elif state.st_rdev:
        found.append(f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}")
    for key in sorted(os.listxattr(path, follow_symlinks=False)):
        found.append(f"{key}={os.getxattr(path, key, follow_symlinks=False)!r}")
    return " ".join(found)
