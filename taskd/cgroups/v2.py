"""Resource usage as cgroup v2 measures it, in containerd's message.

Sources: the kernel's ``admin-guide/cgroup-v2.rst``; containerd's cgroups library, ``cgroup2/``
(manager.go ``Stat``, utils.go). The functions here read a few files of the kernel's.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import betterproto2

from taskd import procfs
from taskd.proto.io.containerd.cgroups.v2 import (
    CpuStat,
    HugeTlbStat,
    IoEntry,
    IoStat,
    MemoryEvents,
    MemoryStat,
    Metrics,
    PidsStat,
    PsiData,
    PsiStats,
    RdmaEntry,
    RdmaStat,
)

__all__ = ["ROOT", "Cgroup"]

ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**64 - 1
_NO_RDMA_LIMIT = 2**32 - 1


class Cgroup:
    """The one cgroup of a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, pid: int) -> Cgroup:
        """Raises OSError if there is no such process."""
        for number, _, path in procfs.cgroups(pid):
            if number == "0":
                return cls(ROOT / path.lstrip("/"))
        raise FileNotFoundError(f"process {pid} is in no cgroup of version 2")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cgroup) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(str(self.folder))

    def stats(self) -> Metrics:
        """Usage now. What the kernel does not measure, or no longer, is left out.

        Raises FileNotFoundError if there is no such cgroup any more.
        """
        if not self.folder.exists():
            raise FileNotFoundError(f"the cgroup is gone: {self.folder}")
        metrics = Metrics()
        for read in (_pids, _cpu, _memory, _memory_events, _io, _rdma, _hugetlb):
            with suppress(OSError):
                read(self.folder, metrics)
        return metrics

    async def ooms(self) -> AsyncGenerator[None]:
        """Each time that a process in it is killed for want of memory, until it is removed.

        Raises OSError if it does not tell.
        """
        loop = asyncio.get_running_loop()
        before = _pairs(self.folder / "memory.events").get("oom_kill", 0)
        with (self.folder / "memory.events").open("rb") as file, select.epoll() as changes:
            changes.register(file, select.EPOLLPRI | select.EPOLLET)
            changed = asyncio.Event()
            loop.add_reader(changes.fileno(), changed.set)
            try:
                while True:
                    await changed.wait()
                    changed.clear()
                    changes.poll(0)
                    try:
                        now = _pairs(self.folder / "memory.events").get("oom_kill", 0)
                    except OSError:
                        return
                    if now > before:
                        yield
                    before = now
            finally:
                loop.remove_reader(changes.fileno())


def _number(file: Path) -> int:
    text = file.read_text().strip()
    return _NO_LIMIT if text == "max" else int(text)


def _pairs(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def _fill(message: betterproto2.Message, values: dict[str, int]) -> None:
    known = message.__dict__
    for name, value in values.items():
        if name in known:
            setattr(message, name, value)


def _pressure(file: Path) -> PsiStats | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # the kernel was built, or started, without
        return None
    found = PsiStats()
    for line in lines:
        kind, *values = line.split()
        numbers = dict(value.split("=") for value in values)
        data = PsiData(
            avg10=float(numbers["avg10"]),
            avg60=float(numbers["avg60"]),
            avg300=float(numbers["avg300"]),
            total=int(numbers["total"]),
        )
        setattr(found, kind, data)
    return found


def _pids(folder: Path, metrics: Metrics) -> None:
    metrics.pids = PidsStat(
        current=_number(folder / "pids.current"), limit=_number(folder / "pids.max")
    )


def _cpu(folder: Path, metrics: Metrics) -> None:
    metrics.cpu = CpuStat(psi=_pressure(folder / "cpu.pressure"))
    _fill(metrics.cpu, _pairs(folder / "cpu.stat"))


def _memory(folder: Path, metrics: Metrics) -> None:
    memory = MemoryStat(psi=_pressure(folder / "memory.pressure"))
    _fill(memory, _pairs(folder / "memory.stat"))
    for field, name in (
        ("usage", "memory.current"),
        ("usage_limit", "memory.max"),
        ("max_usage", "memory.peak"),
        ("swap_usage", "memory.swap.current"),
        ("swap_limit", "memory.swap.max"),
        ("swap_max_usage", "memory.swap.peak"),
    ):
        with suppress(OSError):
            setattr(memory, field, _number(folder / name))
    metrics.memory = memory


def _memory_events(folder: Path, metrics: Metrics) -> None:
    events = MemoryEvents()
    _fill(events, _pairs(folder / "memory.events"))
    metrics.memory_events = events


def _io(folder: Path, metrics: Metrics) -> None:
    usage = []
    for line in (folder / "io.stat").read_text().splitlines():
        device, *values = line.split()
        major, _, minor = device.partition(":")
        entry = IoEntry(major=int(major), minor=int(minor))
        pairs = (value.partition("=") for value in values)
        _fill(entry, {name: int(value) for name, _, value in pairs if value.isdecimal()})
        usage.append(entry)
    metrics.io = IoStat(usage=usage, psi=_pressure(folder / "io.pressure"))


def _rdma(folder: Path, metrics: Metrics) -> None:
    metrics.rdma = RdmaStat()  # as containerd's shim has it, whether or not there is any
    metrics.rdma.current = _rdma_entries(folder / "rdma.current")
    metrics.rdma.limit = _rdma_entries(folder / "rdma.max")


def _rdma_entries(file: Path) -> list[RdmaEntry]:
    entries = []
    for line in file.read_text().splitlines():
        device, *values = line.split()
        found = dict(value.split("=") for value in values)
        numbers = {
            name: _NO_RDMA_LIMIT if value == "max" else int(value) for name, value in found.items()
        }
        entries.append(
            RdmaEntry(
                device=device,
                hca_handles=numbers.get("hca_handle", 0),
                hca_objects=numbers.get("hca_object", 0),
            )
        )
    return entries


def _hugetlb(folder: Path, metrics: Metrics) -> None:
    for file in sorted(folder.glob("hugetlb.*.current")):
        size = file.name.removeprefix("hugetlb.").removesuffix(".current")
        if size.endswith(".rsvd"):  # what is reserved, of the same size
            continue
        metrics.hugetlb.append(
            HugeTlbStat(
                current=_number(file),
                max=_number(folder / f"hugetlb.{size}.max"),
                pagesize=size,
                failcnt=_pairs(folder / f"hugetlb.{size}.events").get("max", 0),
            )
        )
