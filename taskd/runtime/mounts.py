"""Unmounting, for bundles that are taken down.

The standard library has no ``umount2``; this is the one system call that taskd makes by hand.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["mounts_below", "unmount_all"]

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


def unmount_all(target: Path, *, lazy: bool = False) -> None:
    """Unmount everything that is mounted on `target`, however many layers.

    A target that does not exist or is no mount point is no error. Raises OSError.
    Source: containerd's ``mount/mount_linux.go``.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    path = os.fsencode(target)
    while _libc.umount2(path, flags) == 0:
        pass
    error = ctypes.get_errno()
    if error not in (errno.EINVAL, errno.ENOENT):
        # Without CAP_SYS_ADMIN nothing of ours can be mounted there.
        if error == errno.EPERM and not mounts_below(target):
            return
        raise OSError(error, os.strerror(error), str(target))


def mounts_below(folder: Path) -> list[Path]:
    """The mount points at or below `folder`, innermost first."""
    prefix = str(folder).rstrip("/") + "/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Octal escapes stand for white space and backslashes: proc(5).
        point = line.split(" ")[4].encode().decode("unicode_escape").encode("latin-1").decode()
        if f"{point}/".startswith(prefix):
            found.append(Path(point))
    return sorted(found, key=lambda point: len(point.parts), reverse=True)
