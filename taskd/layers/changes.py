"""What differs between two trees, in containerd's order: continuity's ``fs/diff.go``.

Names are taken as bytes, a folder before what is in it, and that before its next neighbour.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Change", "Kind", "attribute", "changes"]

_CAPABILITY = b"security.capability"
_CHUNK = 256 << 10
_SECOND = 10**9


class Kind(enum.Enum):
    WRITTEN = enum.auto()
    """Added, or changed."""
    DELETED = enum.auto()
    LINKED = enum.auto()
    """Unchanged, but it has other names as well."""


@dataclass(frozen=True, slots=True)
class Change:
    kind: Kind
    path: bytes
    """From the root, without a slash before it."""
    state: os.stat_result | None
    """As it is now; None if it was deleted."""


def changes(lower: bytes, upper: bytes) -> Iterator[Change]:
    """What makes `upper` of `lower`, two folders. Raises OSError."""
    # Each folder on the way, with what is to be looked at in it.
    pending = [_names(lower, upper, b"", True, True)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        path, old, new = found
        if new is None:
            yield Change(Kind.DELETED, path, None)
            continue
        if old is None or not _same(lower + b"/" + path, old, upper + b"/" + path, new):
            yield Change(Kind.WRITTEN, path, new)
        elif is_linked(new):
            yield Change(Kind.LINKED, path, new)
        if stat.S_ISDIR(new.st_mode):
            both = old is not None and stat.S_ISDIR(old.st_mode)
            pending.append(_names(lower, upper, path + b"/", both, True))


def is_linked(state: os.stat_result) -> bool:
    """Whether it has other names as well."""
    return not stat.S_ISDIR(state.st_mode) and state.st_nlink > 1


def attribute(path: bytes) -> bytes:
    """A file's capabilities; empty if it has none. Raises OSError."""
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return b""
        raise


_Found = tuple[bytes, os.stat_result | None, os.stat_result | None]


def _names(
    lower: bytes, upper: bytes, prefix: bytes, in_lower: bool, in_upper: bool
) -> Iterator[_Found]:
    """What is in a folder of either tree, by name."""
    old = set(os.listdir(lower + b"/" + prefix)) if in_lower else set()
    new = set(os.listdir(upper + b"/" + prefix)) if in_upper else set()
    for name in sorted(old | new):
        path = prefix + name
        yield (
            path,
            os.lstat(lower + b"/" + path) if name in old else None,
            os.lstat(upper + b"/" + path) if name in new else None,
        )


def _same(old_path: bytes, old: os.stat_result, new_path: bytes, new: os.stat_result) -> bool:
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (
        *(new.st_mode, new.st_uid, new.st_gid, new.st_rdev),
    ):
        return False
    if attribute(old_path) != attribute(new_path):
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if old.st_size != new.st_size or old.st_mtime_ns != new.st_mtime_ns:
        return False
    if new.st_mtime_ns % _SECOND:
        return True
    # It may have been cut off, as archives do.
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(old_path) == os.readlink(new_path)
    return not new.st_size or _same_content(old_path, new_path)


def _same_content(old: bytes, new: bytes) -> bool:
    with open(old, "rb", 0) as one, open(new, "rb", 0) as other:
        while True:
            piece = one.read(_CHUNK)
            if piece != other.read(_CHUNK):
                return False
            if not piece:
                return True
