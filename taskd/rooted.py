"""Paths in a root filesystem, as a process in it would have them: its links lead nowhere else.

Source: openat2(2), ``RESOLVE_IN_ROOT``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False  # as of `typing`, which a process for a layer does without
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["open_at", "open_file", "opened"]

_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    """``struct open_how``."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@contextmanager
def opened(root: Path | str, path: str) -> Iterator[Path]:
    """Whatever `path` is in `root`, under a name that stays its own as long as it is open.

    Raises OSError.
    """
    from pathlib import Path

    descriptor = _open(root, path, os.O_PATH)
    try:
        # Not `self`: mount(8) is another process.
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def open_file(root: Path, path: str) -> int:
    """A descriptor to read the regular file `path` in `root`. Raises OSError."""
    # A FIFO is not waited for.
    descriptor = _open(root, path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    return descriptor


def _open(root: Path | str, path: str, flags: int) -> int:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_at(folder, path, flags)
    finally:
        os.close(folder)


def open_at(root: int, path: str | bytes, flags: int) -> int:
    """A descriptor of `path` in the folder that `root` is open at. Raises OSError."""
    how = _How(flags=flags | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT)
    name = os.fsencode(path)
    found: int = _libc.syscall(
        ctypes.c_long(_OPENAT2), root, name, ctypes.byref(how), ctypes.sizeof(how)
    )
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return found
