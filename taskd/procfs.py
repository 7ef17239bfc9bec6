"""What ``/proc`` tells, of processes and mounts: proc(5).

Names in it are whatever somebody's program or file is called, which need not be UTF-8.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["Mount", "Stat", "age", "cgroups", "command", "mounts", "processes", "stat"]


class Stat:
    """A process, from ``/proc/PID/stat``."""

    def __init__(self, pid: int, fields: Sequence[bytes]) -> None:
        """The fields are those that follow the name."""
        self.pid = pid
        self.state = fields[0].decode()
        """One letter: ``Z`` for a zombie."""
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.started = int(fields[19])
        """In the kernel's ticks since boot: tells it from another that had its number."""
        self.ticks = int(fields[11]) + int(fields[12])
        """Of processors' time."""
        self.pages = int(fields[21])
        """In memory."""


def stat(pid: int) -> Stat:
    """Raises OSError if there is no such process."""
    # The name, in parentheses, may be anything.
    return Stat(pid, Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split())


def age(pid: int) -> float:
    """Seconds since a process began. Raises OSError if there is no such process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - stat(pid).started / os.sysconf("SC_CLK_TCK")


def command(pid: int) -> str:
    """The words that a process was started with; empty if there is no such process any more."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return b" ".join(words).decode(errors="replace")
    return ""


def processes() -> Iterator[Stat]:
    """Every process that can be seen, zombies too."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal():
            with suppress(OSError):
                yield stat(int(name))


def cgroups(pid: int | str) -> Iterator[tuple[str, list[str], str]]:
    """Number, controllers and path of each hierarchy that a process (or ``self``) is in.

    Raises OSError if there is no such process.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_bytes().split(b"\n")[:-1]:
        number, controllers, path = os.fsdecode(line).split(":", 2)
        yield number, controllers.split(","), path


class Mount:
    """What is mounted: a line of ``mountinfo``."""

    def __init__(self, point: Path, kind: str, options: list[str]) -> None:
        self.point = point
        self.kind = kind
        self.options = options
        """The file system's own."""


def mounts() -> Iterator[Mount]:
    """All that is mounted for this process, in the order of mounting."""
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        before, _, after = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", _unescaped, before.split(b" ")[4])
        kind, _, options = os.fsdecode(after).split(" ", 2)
        yield Mount(Path(os.fsdecode(point)), kind, options.split(","))


def _unescaped(octal: re.Match[bytes]) -> bytes:
    # It stands for white space or a backslash.
    return bytes((int(octal[1], 8),))
