"""Mounting and unmounting: the system calls of which the standard library knows nothing.

Sources: mount(2), umount(2); containerd's ``mount/mount_linux.go``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, chdir, nullcontext

TYPE_CHECKING = False  # as of `typing`, which a process for a layer does without
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["mount", "mounts_below", "unmount_all", "unmount_below"]

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_RDONLY, _REMOUNT, _BIND, _REC = 1, 32, 4096, 16384
_UNBINDABLE, _PRIVATE, _SLAVE, _SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
_PROPAGATION = _UNBINDABLE | _PRIVATE | _SLAVE | _SHARED
# Each option, and the flags that it sets and clears.
_FLAGS = {
    "async": (0, 16),
    "atime": (0, 1024),
    "bind": (_BIND, 0),
    "defaults": (0, 0),
    "dev": (0, 4),
    "diratime": (0, 2048),
    "dirsync": (128, 0),
    "exec": (0, 8),
    "mand": (64, 0),
    "noatime": (1024, 0),
    "nodev": (4, 0),
    "nodiratime": (2048, 0),
    "noexec": (8, 0),
    "nomand": (0, 64),
    "norelatime": (0, 1 << 21),
    "nostrictatime": (0, 1 << 24),
    "nosuid": (2, 0),
    "private": (_PRIVATE, 0),
    "rbind": (_BIND | _REC, 0),
    "relatime": (1 << 21, 0),
    "remount": (_REMOUNT, 0),
    "ro": (_RDONLY, 0),
    "rprivate": (_PRIVATE | _REC, 0),
    "rshared": (_SHARED | _REC, 0),
    "rslave": (_SLAVE | _REC, 0),
    "runbindable": (_UNBINDABLE | _REC, 0),
    "rw": (0, _RDONLY),
    "shared": (_SHARED, 0),
    "slave": (_SLAVE, 0),
    "strictatime": (1 << 24, 0),
    "suid": (0, 2),
    "sync": (16, 0),
    "unbindable": (_UNBINDABLE, 0),
}
_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


def mount(
    kind: str, source: str, target: Path | str, options: Iterable[str], *, inside: str = ""
) -> None:
    """Mount as mount(8) would with ``-o options``. Raises OSError.

    With `inside`, on that path in the root filesystem `target`, whose links lead nowhere else.
    What needs more than the system call (loop devices, file systems in user space) is left to
    mount(8).
    """
    options = list(options)
    if "loop" in options or kind.startswith("fuse"):
        # A shim's `delete` does without them.
        import subprocess

        from taskd import inherited

        with (
            _place(target, inside) as place,
            inherited.popen(
                ["mount", "-t", kind, "-o", ",".join(options), "--", source, str(place)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as process,
        ):
            _, words = process.communicate()
        if process.returncode:
            raise OSError(errno.EINVAL, words.decode(errors="replace").strip())
        return
    flags, rest = 0, []
    for option in options:
        if option in _FLAGS:
            sets, clears = _FLAGS[option]
            flags = flags & ~clears | sets
        else:
            rest.append(option)
    data, folder = ",".join(rest), None
    if kind == "overlay" and len(data) >= _PAGE:
        # Names that begin where the mounting process is are shorter.
        rest, folder = _shortened(rest)
        data = ",".join(rest)
    with chdir(folder) if folder else nullcontext():
        if not flags & _REMOUNT or data:
            _mount(source, target, inside, kind, flags & ~_PROPAGATION, data)
    if flags & _PROPAGATION:
        _mount("", target, inside, "", flags & (_PROPAGATION | _REC), "")
    if flags & _BIND and flags & _RDONLY:
        # A bind mount takes no other flags when it is made.
        _mount("", target, inside, "", flags & ~_PROPAGATION | _REMOUNT, "")


def _mount(source: str, target: Path | str, inside: str, kind: str, flags: int, data: str) -> None:
    # Looked up anew each time: what has been mounted there is on top.
    with _place(target, inside) as place:
        names = (os.fsencode(each) for each in (source, place, kind))
        if _libc.mount(*names, ctypes.c_ulong(flags), os.fsencode(data) or None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(target))


def _place(target: Path | str, inside: str) -> AbstractContextManager[Path | str]:
    if not inside:
        return nullcontext(target)
    from taskd import rooted

    return rooted.opened(target, inside)


def _shortened(options: list[str]) -> tuple[list[str], str]:
    """Overlay's options with the layers as seen from the folder that they share, and the folder."""
    layers = [
        layer
        for option in options
        if option.startswith("lowerdir=")
        for layer in option.removeprefix("lowerdir=").split(":")
    ]
    folder = os.path.commonpath(layers) if layers else ""
    if not folder.startswith("/") or folder in ("/", *layers):
        return options, ""
    short = ":".join(os.path.relpath(layer, folder) for layer in layers)
    others = [option for option in options if not option.startswith("lowerdir=")]
    return [f"lowerdir={short}", *others], folder


def unmount_below(target: Path) -> None:
    """Unmount everything on and below `target`, innermost first. Raises OSError."""
    for point in (*mounts_below(target), target):
        unmount_all(point)


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
    from taskd import procfs

    prefix = str(folder).rstrip("/") + "/"
    points = (each.point for each in procfs.mounts())
    found = [point for point in points if f"{point}/".startswith(prefix)]
    return sorted(found, key=lambda point: len(point.parts), reverse=True)
