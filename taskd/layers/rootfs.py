"""Names in a layer, and the folders on their way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from taskd import rooted
from taskd.layers.errors import ParentsWanted, Refused, failed

__all__ = ["clean", "make_folders"]

_MODE = 0o755
_LINKS = 255


def clean(name: bytes) -> bytes:
    """`name` below ``/``, in its shortest form; it leads no further up, whatever it says."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            parts.append(part)
    return b"/" + b"/".join(parts)


def make_folders(path: bytes, parents: Sequence[int] | None) -> None:
    """Make the folder `path` and those on its way, where they are not there.

    Whatever of them is in one of `parents`, the first that has it, looks as it does there; if
    it is not known yet what there will be, `ParentsWanted` is raised. Raises `Refused`.
    """
    found = b""
    try:
        if os.path.isdir(path or b"/"):
            return
        if parents is None:
            raise ParentsWanted
        for part in _resolved(path):
            found += b"/" + part
            try:
                os.mkdir(found, _MODE)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(found).st_mode):
                    raise Refused(f"mkparent {os.fsdecode(found)}: not a directory") from None
            else:
                os.chmod(found, _MODE)
                _dress(found, parents)
    except OSError as error:
        raise failed(f"mkdir {os.fsdecode(found)}", error) from None


def _resolved(path: bytes) -> list[bytes]:
    """The parts of `path` without links, whether it is there or not."""
    pending = path.split(b"/")[::-1]
    parts: list[bytes] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            try:
                target = os.readlink(b"/" + b"/".join([*parts, part]))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    raise
                parts.append(part)  # no link, or not there
                continue
            links += 1
            if links > _LINKS:
                raise Refused("failed to get root path: too many links")
            if target.startswith(b"/"):
                parts = []
            pending += target.split(b"/")[::-1]
    return parts


def _dress(path: bytes, parents: Sequence[int]) -> None:
    """Give a folder the owner, mode, times and attributes that it has in a parent, if in any."""
    for parent in parents:
        try:
            found = rooted.open_at(parent, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO):  # what was deleted is a device
                continue
            raise
        try:
            state = os.fstat(found)
            if not stat.S_ISDIR(state.st_mode):
                return
            os.chown(path, state.st_uid, state.st_gid)
            os.chmod(path, stat.S_IMODE(state.st_mode))
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
            for key in os.listxattr(found):
                if not key.startswith("trusted."):
                    os.setxattr(path, key, os.getxattr(found, key))
        finally:
            os.close(found)
        return
