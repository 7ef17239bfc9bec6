"""Loop devices. Source: loop(4).

losetup(8) would not do: between what it says and what we note down a device would belong to nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskd.content.files import explained

__all__ = ["attach", "detach"]

_CONTROL = Path("/dev/loop-control")
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_SET_STATUS = 0x4C04
_GET_STATUS = 0x4C05

_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
_FLAGS = 8  # place in `_INFO`
_AUTOCLEAR = 4
_TRIES = 100


def attach(file: str, link: Path) -> None:
    """Make a device of a file, and `link` a link to it. Raises `Unknown`."""
    doing = explained(f"failed to set up a loop device of {file}")
    with doing, _attached(file) as (device, name):
        # Until there is the link, the device goes with this process.
        link.symlink_to(name)
        _set_autoclear(device, on=False)


def detach(link: Path) -> None:
    """Let the device that `link` leads to go when nobody has it open any longer; and the link.

    Raises `Unknown`.
    """
    with explained(f"failed to detach {link}"):
        device = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_autoclear(device, on=True)
            link.unlink()
        except OSError as error:
            if error.errno != errno.ENXIO:  # somebody else has detached it
                raise
            link.unlink()
        finally:
            os.close(device)


@contextmanager
def _attached(file: str) -> Iterator[tuple[int, str]]:
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"/dev/loop{_free()}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                shown = os.fsencode(file)[:63]
                info = _INFO.pack(*(0,) * 8, _AUTOCLEAR, shown, b"", b"", 0, 0)
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, 0, info))
                yield device, name
                return
            except OSError as error:
                if error.errno != errno.EBUSY:  # another was quicker
                    raise
            finally:
                os.close(device)
        raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(backing)


def _free() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)


def _set_autoclear(device: int, *, on: bool) -> None:
    info = bytearray(_INFO.size)
    fcntl.ioctl(device, _GET_STATUS, info)
    values = list(_INFO.unpack(info))
    values[_FLAGS] = values[_FLAGS] & ~_AUTOCLEAR | (_AUTOCLEAR if on else 0)
    fcntl.ioctl(device, _SET_STATUS, _INFO.pack(*values))
