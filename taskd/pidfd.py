"""How a process has ended, for somebody who is not its parent: pidfd_open(2).

Linux 6.15 and later tell it of a process that has been reaped, to whoever has a pidfd of it; of one
that has not been, a zombie, ``/proc/PID/stat`` tells it on any Linux, to who may ptrace it. What a
pidfd says of a zombie reads like success, and is not: the bit that says so is missing.
Source of the numbers: the kernel's ``include/uapi/linux/pidfd.h``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["exit_status", "open_known", "pid_of", "tells_exits"]

_SIZE = 64
_GET_INFO = (3 << 30) | (_SIZE << 16) | (0xFF << 8) | 11
"""``PIDFD_GET_INFO``, with the first form of its struct."""
_EXIT = 1 << 3
"""``PIDFD_INFO_EXIT``."""
_EXIT_CODE = 60


def exit_status(pidfd: int) -> int | None:
    """How the process ended, as wait(2) has it; None if it has not, or if that cannot be known.

    The pidfd of one that has ended is readable. If that is so, what is not known now may be known
    when it is asked for again: of a process that is being reaped, neither way tells.
    """
    told = _told_by_pidfd(pidfd)
    return _told_by_zombie(pidfd) if told is None else told


def pid_of(pidfd: int) -> int:
    """Its number; -1 when it has been reaped, and 0 if it cannot be seen from here."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return 0


def open_known(pid: int, started: int) -> int:
    """A pidfd of the process of that number which was started then (`taskd.procfs.Stat.started`).

    Raises ProcessLookupError if there is none any more.
    """
    from taskd import procfs

    pidfd = os.pidfd_open(pid)
    try:
        # Looked at after it was opened, it is the one that was opened.
        if procfs.stat(pid).started != started:
            raise ProcessLookupError(pid)
    except BaseException as exc:
        os.close(pidfd)
        if isinstance(exc, FileNotFoundError):
            raise ProcessLookupError(pid) from exc
        raise
    return pidfd


@cache
def tells_exits() -> bool:
    """Whether the kernel tells how a process ended that has been reaped.

    To be asked in a process that does not reap whatever child ends. Raises OSError.
    """
    child = os.posix_spawnp("true", ["true"], {})
    pidfd = -1
    try:
        pidfd = os.pidfd_open(child)
        os.waitpid(child, 0)
        return _told_by_pidfd(pidfd) is not None
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _told_by_pidfd(pidfd: int) -> int | None:
    given = bytearray(struct.pack("Q", _EXIT).ljust(_SIZE, b"\0"))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, given)
    except OSError:  # an older kernel
        return None
    (mask,) = struct.unpack_from("Q", given)
    (status,) = struct.unpack_from("i", given, _EXIT_CODE)
    return int(status) if mask & _EXIT else None


def _told_by_zombie(pidfd: int) -> int | None:
    pid = pid_of(pidfd)
    if pid <= 0:
        return None
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        # As long as it has not been reaped, nobody else has had its number.
        if fields[0] == b"Z" and _may_look_into(pid) and pid_of(pidfd) == pid:
            return int(fields[49])
    return None


def _may_look_into(pid: int) -> bool:
    """Who may not is told 0 as the status."""
    try:
        os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115
    except FileNotFoundError:  # a zombie has none
        return True
    except OSError:
        return False
    return True
