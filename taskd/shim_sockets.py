"""Where shims listen: a place that nobody else can put a socket into.

Shims and daemons reckon it each by themselves, as a daemon may have to know it of a shim that was
killed before it could say so. Source: containerd's ``CreateSocketAddress`` and ``NewSocket`` in
``pkg/shim/util_unix.go``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from taskd import folders

__all__ = ["folder", "make", "path", "refuse_exposed"]

_MAX_PATH = 107
"""Bytes of a unix socket's path: ``sun_path`` less its final NUL, unix(7)."""
_MIN_DIGITS = 16
_ALL_USERS = ["0", "0", "4294967295"]
"""``/proc/self/uid_map`` where there is no user namespace."""


def folder(bundle: Path) -> Path:
    """The folder of the sockets of shims that run as this user.

    It is containerd's for root, and for others in ``XDG_RUNTIME_DIR``, or else beside the folders
    of the namespaces, two above `bundle`, where the daemon has its state.
    """
    if os.geteuid() == 0:
        return Path("/run/containerd/s")
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base, "taskd-shims")
    return bundle.parents[1] / ".s"


def path(folder: Path, name: str) -> Path:
    """The socket for `name` there; as much of its digest as there is room for.

    Raises OSError if that is too little.
    """
    import hashlib

    digest = hashlib.sha256(name.encode()).hexdigest()
    digits = min(_MAX_PATH - 1 - len(os.fsencode(folder)), len(digest))
    if digits < _MIN_DIGITS:
        raise OSError(f"path of a socket too long, set XDG_RUNTIME_DIR to a shorter one: {folder}")
    return folder / digest[:digits]


def make(folder: Path) -> None:
    """Make a folder for sockets unless it is there. Raises OSError, and as `refuse_exposed`."""
    # containerd's mode, for those who are to reach what it is asked to make for them.
    folders.make(folder, 0o711 if os.geteuid() == 0 else 0o700)
    refuse_exposed(folder)


def refuse_exposed(folder: Path) -> None:
    """Raise PermissionError if others can put theirs into `folder`, or in its or a parent's place.

    A folder like ``/tmp`` may be above it, in which nobody takes away what is another's.
    """
    trusted = _trusted()
    resolved = folder.resolve()
    for part in {*folder.parents, folder, *resolved.parents, resolved}:
        found = part.lstat()
        if found.st_uid not in trusted:
            raise PermissionError(f"{part} belongs to user {found.st_uid}")
        exposed = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = found.st_mode & stat.S_ISVTX and part != resolved
        if exposed and not sticky and not stat.S_ISLNK(found.st_mode):
            mode = stat.S_IMODE(found.st_mode)
            raise PermissionError(f"others may write into {part} (mode {mode:04o})")


def _trusted() -> set[int]:
    """Users who may do with us as they like anyway."""
    trusted = {0, os.geteuid()}
    if Path("/proc/self/uid_map").read_text().split() != _ALL_USERS:
        # Of a user namespace: this is how those outside are shown, such as the owner of `/`.
        trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return trusted
