"""The processes that a shim had started, for the one that cleans up after it was killed.

Each leads a session, whose number is its own. While the session has members nobody else gets that
number, so that those who have outlived their leader are found by it.
"""

from __future__ import annotations

import json
import os
import signal
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from taskd import procfs
from taskd.procfs import Stat

__all__ = [
    "RECORD",
    "end",
    "exit_of",
    "has_noted",
    "init_pid",
    "kill",
    "kill_strangers",
    "members",
    "note",
    "note_init",
]

_INIT = "init.pid"
_STARTED = "processes"
RECORD = "shim-record"
"""What is known of a container: `taskd.shim.record`."""
_DYING_SECONDS = 2.0
"""containerd gives all of ``delete`` five."""
_ENDED = (3, -1)
"""`Status.STOPPED` and `Status.DELETED`."""


def note_init(bundle: Path, pid: int) -> None:
    """Write down the init process's pid, in containerd's file of that purpose."""
    (bundle / _INIT).write_text(str(pid))


def init_pid(bundle: Path) -> int:
    """The pid that was noted, or 0."""
    try:
        return int((bundle / _INIT).read_text())
    except (OSError, ValueError):
        return 0


def exit_of(bundle: Path) -> tuple[int, int] | None:
    """Exit status of the init process, and when in ns since the epoch, if its shim knew.

    Of its record (`taskd.shim.record`), without what else it takes to read that.
    """
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        mark, _, text = (bundle / RECORD).read_bytes().partition(b"\n")
        init = json.loads(text)["processes"][0]
        if int(mark, 16) == zlib.crc32(text) and init["status"] in _ENDED:
            return int(init["exit_status"]), int(init["exited_at"])
    return None


def note(bundle: Path, pid: int) -> None:
    """Write down a process that leads a session."""
    with suppress(OSError), (bundle / _STARTED).open("a") as file:
        file.write(f"{pid} {procfs.stat(pid).started}\n")


def has_noted(bundle: Path) -> bool:
    """Whether any process has been started for it."""
    return bool(_noted(bundle))


def kill(bundle: Path) -> None:
    """Kill all members of the sessions that were noted."""
    _kill(_noted(bundle))


def end(bundle: Path) -> None:
    """Kill them, and wait until they hold nothing any more, such as a mount; for two seconds.

    It blocks.
    """
    kill(bundle)
    latest = time.monotonic() + _DYING_SECONDS
    while any(each.state != "Z" for each in members(bundle)) and time.monotonic() < latest:
        time.sleep(0.005)


def kill_strangers(bundle: Path, known: Collection[int]) -> None:
    """Kill those of them whose leader lives, and is not `known`: it was just being started."""
    strangers = {}
    for pid, started in _noted(bundle).items():
        with suppress(OSError):
            if pid not in known and procfs.stat(pid).started == started:
                strangers[pid] = started
    _kill(strangers)


def _kill(leaders: Mapping[int, int]) -> None:
    killed: set[int] = set()
    # Whoever is killed forks no more, but may have done so since the members were looked up.
    while leaders and (found := {each.pid for each in _members(leaders)} - killed):
        # Leaders first: a shell whose child is killed before it ends in a way of its own.
        for pid in sorted(found, key=lambda each: each not in leaders):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found


def members(bundle: Path) -> Iterator[Stat]:
    """Who is in the sessions that were noted, zombies too."""
    return _members(_noted(bundle))


def _members(leaders: Mapping[int, int]) -> Iterator[Stat]:
    """Who is in the sessions of `leaders`, as `_noted` has them."""
    found = [each for each in procfs.processes() if each.session in leaders]
    # A number may be another's by now, who was started later than the one that was noted.
    others = {
        each.pid
        for each in found
        if each.pid == each.session and each.started != leaders[each.session]
    }
    for each in found:
        if each.session not in others and each.started >= leaders[each.session]:
            yield each


def _noted(bundle: Path) -> dict[int, int]:
    """When each leader was started, by its pid."""
    try:
        lines = (bundle / _STARTED).read_text().splitlines()
    except OSError:
        return {}
    return dict(tuple(map(int, line.split())) for line in lines)  # type: ignore[misc]
