"""The search for what should not be there any more."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness.daemons import Daemon
from harness.pace import SLOWER
from taskd import procfs

__all__ = ["Traces", "descriptors", "leaving_nothing", "left_behind", "traces"]


@dataclass(frozen=True)
class Traces:
    """What containers leave in the system while they exist."""

    processes: frozenset[str]
    mounts: frozenset[str]
    sockets: frozenset[str]
    runc: frozenset[str]
    bundles: frozenset[str]


def traces(state: Path, root: Path, namespace: str) -> Traces:
    """What there is now of the daemon on `state` and `root`, and of its `namespace`."""
    mounts = [str(each.point) for each in procfs.mounts()]
    return Traces(
        processes=frozenset(_processes(str(state), namespace)),
        mounts=frozenset(mount for mount in mounts if mount.startswith((str(state), str(root)))),
        sockets=frozenset(map(str, Path("/run/containerd/s").glob("*"))),
        runc=frozenset(map(str, Path("/run/containerd/runc", namespace).glob("*"))),
        bundles=frozenset(
            str(path)
            for folder in (state, root)
            for path in folder.glob(f"io.containerd.*/{namespace}/*")
            if "snapshotter" not in str(path)
        ),
    )


def _processes(state: str, namespace: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        shim = f"-namespace {namespace} " in command
        if shim or (command.startswith("runc ") and state in command):
            found.append(f"{folder.name} {command}")
    return found


@contextmanager
def leaving_nothing(daemon: Daemon, namespace: str) -> Iterator[None]:
    """What is done here must leave nothing of the namespace behind."""
    before = traces(daemon.state, daemon.root, namespace)
    yield
    # What ends by itself (an event being published, say) has a moment to do so.
    deadline = time.monotonic() + 5 * SLOWER
    while True:
        after = traces(daemon.state, daemon.root, namespace)
        # One on which somebody listens is found among the processes, if it is ours.
        others = before.sockets.union(os.fsdecode(Path("/proc/net/unix").read_bytes()).split())
        expected = replace(before, sockets=after.sockets & others)
        if after == expected or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if after != expected:
        _sweep(after, namespace)
    left = [each for kind, now in vars(after).items() for each in now - vars(expected)[kind]]
    assert after == expected, f"left behind: {left}"
    with suppress(OSError):
        Path("/run/containerd/runc", namespace).rmdir()


def left_behind(daemon: Daemon, namespace: str, *, seconds: float) -> list[str]:
    """What there is of a namespace whose tasks are all deleted, after which it is gone.

    What ends by itself has so many seconds to do so.
    """
    deadline = time.monotonic() + seconds * SLOWER
    while True:
        found = traces(daemon.state, daemon.root, namespace)
        left = [*found.processes, *found.runc, *found.bundles]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if left:
        _sweep(found, namespace)
    return left


def _sweep(found: Traces, namespace: str) -> None:
    """End and remove what a failed test left, so that it is the only one to fail."""
    for process in found.processes:
        with suppress(ProcessLookupError):
            os.kill(int(process.split()[0]), signal.SIGKILL)
    for container in found.runc:
        root, name = os.path.split(container)
        subprocess.run(["runc", "--root", root, "delete", "--force", name], check=False)
    for mount in found.mounts:
        subprocess.run(["umount", "-l", mount], check=False)
    with suppress(OSError):
        Path("/run/containerd/runc", namespace).rmdir()


def descriptors(pid: int) -> list[str]:
    """What a process has open, without its numbers."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return sorted(found)
