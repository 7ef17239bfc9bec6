"""The processes that a shim had started, for the one that cleans up after it was killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

__all__ = ["init_pid", "kill", "note", "note_init"]

_INIT = "init.pid"
_STARTED = "processes"


def note_init(bundle: Path, pid: int) -> None:
    """Write down the init process's pid, in containerd's file of that purpose."""
    (bundle / _INIT).write_text(str(pid))


def init_pid(bundle: Path) -> int:
    """The pid that was noted, or 0."""
    try:
        return int((bundle / _INIT).read_text())
    except (OSError, ValueError):
        return 0


def note(bundle: Path, pid: int) -> None:
    """Write down a process that leads a session."""
    with (bundle / _STARTED).open("a") as file:
        file.write(f"{pid} {_started_at(pid)}\n")


def kill(bundle: Path) -> None:
    """Kill the process groups of all that were noted and still are."""
    with suppress(OSError):
        for line in (bundle / _STARTED).read_text().splitlines():
            pid, _, started = line.partition(" ")
            # Its number may be another's by now.
            if started and _started_at(int(pid)) == started:
                with suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)


def _started_at(pid: int) -> str:
    """When a process was started, in the kernel's ticks since boot; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return ""
