"""What a shim and its containers leave in the system, and how it is swept up.

Everything of one case bears its namespace, which is nobody else's: in command lines, in the
environment of processes, in the names of folders and cgroups.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taskd import procfs
from taskd.check.container import MARK
from taskd.mounts import mounts_below, unmount_all

__all__ = ["Whereabouts", "alive", "all_pids", "cgroups", "find", "processes", "sweep"]

_CGROUPS = Path("/sys/fs/cgroup")
_SWEEP_SECONDS = 5.0


@dataclass(frozen=True)
class Whereabouts:
    """Where the traces of one case are to be looked for."""

    namespace: str
    folder: Path
    temporary: Path
    """``TMPDIR`` of its shims."""
    runtime_state: Path
    """Where an OCI runtime keeps the state of the namespace's containers, by their ids."""
    others: frozenset[int]
    """Pids that there were before; none of them is one of ours."""


def find(there: Whereabouts, sockets: Iterable[str]) -> list[str]:
    """A line about each thing that is there; `sockets` are paths, without ``unix://``."""
    return [
        *(f"process {pid}: {command}" for pid, command in processes(there)),
        *(f"mount {point}" for point in mounts_below(there.folder)),
        *(f"socket {path}" for path in sockets if Path(path).exists()),
        *(f"state of the runtime {path}" for path in _entries(there.runtime_state)),
        *(f"temporary file {path}" for path in _entries(there.temporary)),
        *(f"cgroup {path}" for path in cgroups(there.namespace)),
    ]


def sweep(there: Whereabouts, sockets: Iterable[str]) -> None:
    """End and remove all that `find` finds."""
    deadline = time.monotonic() + _SWEEP_SECONDS
    _thaw(there.namespace)  # what is frozen does not even die
    while (running := list(processes(there))) and time.monotonic() < deadline:
        for pid, _ in running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for point in mounts_below(there.folder):
        with suppress(OSError):
            unmount_all(point, lazy=True)
    for path in sockets:
        with suppress(OSError):
            Path(path).unlink()
    while (folders := cgroups(there.namespace)) and time.monotonic() < deadline:
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
    shutil.rmtree(there.runtime_state, ignore_errors=True)


def _thaw(namespace: str) -> None:
    for folder in cgroups(namespace):
        for file, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (folder / file).exists():
                (folder / file).write_text(text)


def all_pids() -> Iterator[int]:
    """Those of all processes."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208


def processes(there: Whereabouts) -> Iterator[tuple[int, str]]:
    """Pid and command line of the shims and containers there that have not ended."""
    namespace = there.namespace
    marks = [f"{name}={namespace}".encode() for name in (MARK, "NAMESPACE")]
    for pid in all_pids():
        if pid in there.others:
            continue
        folder = Path("/proc", str(pid))
        try:
            command = (folder / "cmdline").read_bytes()
            if namespace.encode() in command or _has_mark(folder, marks):
                yield pid, command.replace(b"\0", b" ").decode(errors="replace")[:200]
        except OSError:
            continue


def _has_mark(folder: Path, marks: list[bytes]) -> bool:
    variables = (folder / "environ").read_bytes().split(b"\0")
    return any(mark in variables for mark in marks)


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return procfs.stat(pid).state not in ("Z", "X")
    except OSError:
        return False


def cgroups(namespace: str) -> list[Path]:
    """The cgroups whose names contain `namespace`."""
    hierarchies = [_CGROUPS, *(each for each in _entries(_CGROUPS) if each.is_dir())]
    folders = [*hierarchies, *(each / "system.slice" for each in hierarchies[1:])]
    # Of thousands of names, which is why it is no glob.
    found = [folder / name for folder in folders for name in _names(folder) if namespace in name]
    return [each for each in found if each.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(_names(folder))]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone
    except OSError:
        return []
