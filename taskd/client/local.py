"""What containers use, read from the kernel by a client on their machine, instead of asked for.

The daemon would ask their shims, each of which reads the same files. Of these only a few are read
here, for a fifth of what all of `taskd.cgroups`' statistics take. Sources: the kernel's
``admin-guide/cgroup-v2.rst`` and ``admin-guide/cgroup-v1``; what of it counts is as in `Stats`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from taskd import cgroups
from taskd.cgroups import v1, v2
from taskd.client.container import Container
from taskd.client.stats import Stats, limit

__all__ = ["Groups"]

_Read = Callable[[str], Stats]


class Groups:
    """The cgroups of containers, which are looked for once for each task."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], _Read | None] = {}

    def measure(self, containers: Iterable[Container]) -> tuple[dict[str, Stats], list[Container]]:
        """What they use, by id, and those of which only the daemon can tell. It may block."""
        found: dict[str, Stats] = {}
        others: list[Container] = []
        known, self._known = self._known, {}
        for each in containers:
            name = each.id, each.pid
            read = known[name] if name in known else _reader(each)
            self._known[name] = read
            try:
                if read is not None:
                    found[each.id] = read(each.id)
            except (OSError, ValueError):
                read = None  # it has ended, or the kernel has something else there
            if read is None:
                others.append(each)
        return found, others


def _reader(container: Container) -> _Read | None:
    """None unless it has a cgroup of its own, which is that of its specification, and is here."""
    wanted = (container.spec.get("linux") or {}).get("cgroupsPath") or ""
    if not container.pid or not wanted.startswith("/") or len(wanted) < 2:
        return None
    with suppress(OSError):
        group = cgroups.of(container.pid)
        if isinstance(group, v2.Cgroup):
            folder = group.folder
            if str(folder).endswith(wanted) and (folder / "memory.current").exists():
                return lambda id: _v2(id, folder)  # noqa: A006
        elif isinstance(group, v1.Cgroup):
            cpuacct, memory, pids = map(group.folder, ("cpuacct", "memory", "pids"))
            disk = group.folder("blkio")  # which a runtime need not make one of
            if all(str(each).endswith(wanted) for each in (cpuacct, memory, pids)):
                own = disk if str(disk).endswith(wanted) else None
                return lambda id: _v1(id, cpuacct, memory, pids, own)  # noqa: A006
    return None


def _v1(id: str, cpuacct: Path, memory: Path, pids: Path, blkio: Path | None) -> Stats:  # noqa: A002
    usage = _number(memory / "memory.usage_in_bytes")
    read, written = _moved(blkio) if blkio is not None else (0, 0)
    return Stats(
        id,
        time.time_ns(),
        cpu=_number(cpuacct / "cpuacct.usage"),
        memory=max(0, usage - _pair(memory / "memory.stat", b"total_inactive_file")),
        memory_limit=limit(_number(memory / "memory.limit_in_bytes")),
        pids=_number(pids / "pids.current"),
        pids_limit=limit(_number(pids / "pids.max")),
        read=read,
        written=written,
        oom=None,
    )


def _v2(id: str, folder: Path) -> Stats:  # noqa: A002
    read = written = 0
    with suppress(OSError):  # the controller need not be there
        for line in (folder / "io.stat").read_bytes().splitlines():
            values = dict(each.partition(b"=")[::2] for each in line.split()[1:])
            read += int(values.get(b"rbytes", 0))
            written += int(values.get(b"wbytes", 0))
    usage = _number(folder / "memory.current")
    return Stats(
        id,
        time.time_ns(),
        cpu=_pair(folder / "cpu.stat", b"usage_usec") * 1000,
        memory=max(0, usage - _pair(folder / "memory.stat", b"inactive_file")),
        memory_limit=limit(_number(folder / "memory.max")),
        pids=_number(folder / "pids.current"),
        pids_limit=limit(_number(folder / "pids.max")),
        read=read,
        written=written,
        oom=None,
    )


def _number(file: Path) -> int:
    text = file.read_bytes().strip()
    return 0 if text == b"max" else int(text)


def _pair(file: Path, name: bytes) -> int:
    for line in file.read_bytes().splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


def _moved(blkio: Path) -> tuple[int, int]:
    """Bytes read and written: as the disks' scheduler counts them, or else as the kernel does."""
    for name in ("io_service_bytes_recursive", "throttle.io_service_bytes_recursive"):
        rows: list[list[bytes]] = []
        with suppress(OSError):
            lines = (blkio / f"blkio.{name}").read_bytes().splitlines()
            rows = [row for row in map(bytes.split, lines) if len(row) == 3]
        if rows:
            read, written = (
                sum(int(value) for _, done, value in rows if done == operation)
                for operation in (b"Read", b"Write")
            )
            return read, written
    return 0, 0
