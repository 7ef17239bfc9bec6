"""``taskd doctor``: what of this machine can be used, and what to do about the rest."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import pwd
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from taskd import pidfd, procfs
from taskd.config import Config
from taskd.errors import TaskdError

__all__ = ["Finding", "Verdict", "findings"]

_FILES = 65_536
"""Open files that a daemon with a thousand containers may have, with room."""
_FREE_BYTES = 1 << 30
_PIDFD_OPEN, _OPENAT2 = 434, 437


class Verdict(Enum):
    """What a finding means."""

    GOOD = "ok"
    MISSING = "--"
    """Something that not everybody needs."""
    BAD = "!!"
    """Containers will not run, or will be lost."""


class Finding(NamedTuple):
    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


def findings(config: Config) -> Iterator[Finding]:
    """What there is to say, part by part, for a daemon with this configuration."""
    for look in _LOOKS:
        try:
            yield from look(config)
        except (OSError, TaskdError) as exc:
            yield Finding(Verdict.BAD, look.__name__.strip("_").replace("_", " "), str(exc))


def _interpreter(_: Config) -> Iterator[Finding]:
    yield Finding(Verdict.GOOD, "python", f"{platform.python_version()}, {sys.executable}")


def _kernel(_: Config) -> Iterator[Finding]:
    release = platform.release()
    yield Finding(Verdict.GOOD, "kernel", f"{platform.system()} {release}")
    for name, number in (("pidfd_open", _PIDFD_OPEN), ("openat2", _OPENAT2)):
        if not _has_call(number):
            yield Finding(
                Verdict.BAD, "kernel", f"no {name}", "Linux 5.6 or later, or a filter without it"
            )
    told = False
    with suppress(OSError):
        told = pidfd.tells_exits()
    if told:
        yield Finding(Verdict.GOOD, "exits", "told to others: containers may survive their shims")
    else:
        yield Finding(
            Verdict.MISSING,
            "exits",
            "told to parents alone: containers end with their shims",
            "Linux 6.15 or later",
        )


def _has_call(number: int) -> bool:
    """Whether the kernel knows a system call, whatever it says of arguments that mean nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(number), -1, None, None, 0)
    return ctypes.get_errno() != errno.ENOSYS


def _cgroups(_: Config) -> Iterator[Finding]:
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.controllers"
    if unified.exists():
        yield from _unified(root)
        return
    controllers = sorted(each.name for each in root.iterdir() if (each / "tasks").exists())
    if not controllers:
        yield Finding(Verdict.BAD, "cgroups", f"none below {root}", "mount cgroup2 there")
        return
    kind = "hybrid" if (root / "unified").exists() else "version 1"
    yield Finding(Verdict.GOOD, "cgroups", f"{kind}: {' '.join(controllers)}")
    if kind == "hybrid" and shutil.which("crun"):
        yield Finding(
            Verdict.MISSING,
            "crun",
            "does not run with a mixture of cgroup versions",
            f"umount {root / 'unified'}, or boot with systemd.unified_cgroup_hierarchy=1",
        )


def _unified(root: Path) -> Iterator[Finding]:
    """Of cgroup v2 the group counts that this process is in: an unprivileged one has no other."""
    own = root
    if os.geteuid() != 0:
        _, _, place = next(procfs.cgroups("self"), ("", [], ""))
        own = root / place.lstrip("/")
    controllers = (own / "cgroup.controllers").read_text().split()
    missing = {"cpu", "memory", "pids"}.difference(controllers)
    if not missing:
        yield Finding(Verdict.GOOD, "cgroups", f"version 2: {' '.join(controllers)}")
        return
    yield Finding(
        Verdict.MISSING if os.geteuid() != 0 else Verdict.BAD,
        "cgroups",
        f"version 2, without {' '.join(sorted(missing))} in {own}",
        "Delegate=yes in the unit of taskd or of user@.service",
    )


def _runtimes(_: Config) -> Iterator[Finding]:
    found = []
    for name in ("runc", "crun", "youki", "runsc"):
        if path := shutil.which(name):
            found.append(name)
            yield Finding(Verdict.GOOD, "OCI runtime", f"{_version(path)}, {path}")
    if not {"runc", "crun"}.intersection(found):
        yield Finding(
            Verdict.BAD if os.geteuid() == 0 else Verdict.MISSING,
            "OCI runtime",
            "neither runc nor crun",
            "apt-get install runc; io.taskd.process.v1 needs none",
        )


def _version(program: str) -> str:
    """The first line that a program says of itself."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"does not run: {exc}"
    return (said.stdout or said.stderr).partition("\n")[0].strip() or "says no version"


def _shims(_: Config) -> Iterator[Finding]:
    for each in sorted(entry_points(group="taskd.shims"), key=lambda point: point.name):
        try:
            each.load()
        except Exception as exc:
            needs = f"pip install {exc.name}" if isinstance(exc, ModuleNotFoundError) else ""
            yield Finding(Verdict.MISSING, "shim", f"{each.name} cannot be used: {exc}", needs)
        else:
            yield Finding(Verdict.GOOD, "shim", each.name)
    if path := shutil.which("containerd-shim-runc-v2"):
        yield Finding(Verdict.GOOD, "shim", f"io.containerd.runc.v2, {path}")
    else:
        yield Finding(
            Verdict.MISSING,
            "shim",
            "io.containerd.runc.v2, which ctr and Docker ask for by default",
            "apt-get install containerd",
        )


def _limits(_: Config) -> Iterator[Finding]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard in range(_FILES):
        yield Finding(
            Verdict.MISSING, "open files", f"{hard} at most", f"LimitNOFILE={_FILES} in the unit"
        )
    else:
        yield Finding(Verdict.GOOD, "open files", "no limit" if hard < 0 else f"{hard} at most")


def _folders(config: Config) -> Iterator[Finding]:
    for name, folder in (("root", config.root), ("state", config.state)):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not os.access(there, os.W_OK):
            yield Finding(
                Verdict.BAD,
                name,
                f"{folder} cannot be written",
                f"another {name}, or chown {there}",
            )
            continue
        room = shutil.disk_usage(there).free
        text = f"{folder}, {room / (1 << 30):.1f} GiB free"
        if room < _FREE_BYTES:
            yield Finding(Verdict.MISSING, name, text, "make room: records and events go there")
        else:
            yield Finding(Verdict.GOOD, name, text)


def _daemon(config: Config) -> Iterator[Finding]:
    given = os.environ.get("TASKD_ADDRESS")
    path = Path(given) if given else config.socket
    if not path.exists():
        yield Finding(Verdict.MISSING, "daemon", f"no socket {path}", "taskd serve")
        return
    with socket.socket(socket.AF_UNIX) as probe, suppress(BlockingIOError):
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except PermissionError:
            yield Finding(Verdict.BAD, "daemon", f"{path} is somebody else's", "sudo")
        except OSError as exc:
            words = os.strerror(exc.errno) if exc.errno else str(exc)
            yield Finding(Verdict.BAD, "daemon", f"{path}: {words}", "taskd serve")
        else:
            yield Finding(Verdict.GOOD, "daemon", f"takes connections on {path}")


def _snapshots(_: Config) -> Iterator[Finding]:
    with Path("/proc/filesystems").open() as file:
        if any(line.split()[-1:] == ["overlay"] for line in file):
            yield Finding(Verdict.GOOD, "overlay", "in the kernel")
        else:
            yield Finding(Verdict.MISSING, "overlay", "not in the kernel", "modprobe overlay")


def _unprivileged(_: Config) -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        with suppress(FileNotFoundError):
            if any(line.startswith((f"{name}:", f"{os.geteuid()}:")) for line in file.open()):
                yield Finding(Verdict.GOOD, "user", f"has a range in {file}")
                continue
        remedy = f"usermod --add-sub{file.name[3:]}s 100000-165535 {name}"
        yield Finding(Verdict.MISSING, "user", f"has no range in {file}", remedy)
    for program in ("newuidmap", "newgidmap"):
        if not shutil.which(program):
            yield Finding(Verdict.MISSING, "user", f"no {program}", "apt-get install uidmap")


def _checkpoints(_: Config) -> Iterator[Finding]:
    if path := shutil.which("criu"):
        yield Finding(Verdict.GOOD, "checkpoints", f"{_version(path)}, {path}")
    else:
        yield Finding(Verdict.MISSING, "checkpoints", "no criu", "apt-get install criu")


_LOOKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _interpreter,
    _kernel,
    _cgroups,
    _runtimes,
    _shims,
    _limits,
    _folders,
    _daemon,
    _snapshots,
    _unprivileged,
    _checkpoints,
)
