"""Resource usage as cgroup v1 measures it, in containerd's message.

Sources: containerd's cgroups library, ``cgroup1/`` (memory.go, cpuacct.go, blkio.go, hugetlb.go);
the kernel's ``admin-guide/cgroup-v1/memory.rst``, section 10, "OOM Control". The functions here
read a few files of the kernel's and do not block for long.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

from taskd import procfs
from taskd.proto.io.containerd.cgroups.v1 import (
    BlkIoEntry,
    BlkIoStat,
    CpuStat,
    CpuUsage,
    HugetlbStat,
    MemoryEntry,
    MemoryOomControl,
    MemoryStat,
    Metrics,
    PidsStat,
    RdmaEntry,
    RdmaStat,
    Throttle,
)

__all__ = ["Cgroup"]

_NANOSECONDS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_PER_CPU = "cpuacct.usage_percpu"

# Names that the message has otherwise than the kernel.
_MEMORY_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}

# The disk scheduler's own counters, and what they are called in the message.
_BLKIO = {
    "sectors_recursive": "sectors_recursive",
    "io_service_bytes_recursive": "io_service_bytes_recursive",
    "io_serviced_recursive": "io_serviced_recursive",
    "io_queued_recursive": "io_queued_recursive",
    "io_service_time_recursive": "io_service_time_recursive",
    "io_wait_time_recursive": "io_wait_time_recursive",
    "io_merged_recursive": "io_merged_recursive",
    "time_recursive": "io_time_recursive",
}
# Most schedulers have none; these the kernel always has.
_BLKIO_THROTTLE = {
    "throttle.io_serviced": "io_serviced_recursive",
    "throttle.io_service_bytes": "io_service_bytes_recursive",
}


class Cgroup:
    """The cgroups of one process, a folder for each controller."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders

    @classmethod
    def of(cls, pid: int) -> Cgroup:
        """Raises OSError if there is no such process."""
        mounts = dict(_mounts())
        folders = {}
        for _, controllers, path in procfs.cgroups(pid):
            for controller in controllers:
                if controller in mounts:
                    folders[controller] = mounts[controller] / path.lstrip("/")
        return cls(folders)

    def folder(self, controller: str) -> Path:
        """Raises FileNotFoundError if the process is in no such cgroup."""
        try:
            return self._folders[controller]
        except KeyError:
            raise FileNotFoundError(f"no cgroup of controller {controller}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cgroup) and self._folders == other._folders

    def __hash__(self) -> int:
        return hash(str(self._folders))

    def stats(self) -> Metrics:
        """Usage now. What the kernel does not measure, or no longer, is left out.

        Raises FileNotFoundError if there is no such cgroup any more.
        """
        if not any(folder.exists() for folder in self._folders.values()):
            raise FileNotFoundError("the cgroup is gone")
        metrics = Metrics(cpu=CpuStat(usage=CpuUsage(), throttling=Throttle()))
        for controller, read in _READERS.items():
            if controller in self._folders:
                with suppress(OSError):
                    read(self._folders[controller], metrics)
        return metrics

    async def ooms(self) -> AsyncGenerator[None]:
        """Each time that it runs out of memory, until it is removed.

        Raises OSError if it does not tell.
        """
        folder = self.folder("memory")
        notice = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(folder / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (folder / "cgroup.event_control").write_text(f"{notice} {control}")
            finally:
                os.close(control)
            noticed = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(notice, noticed.set)
            try:
                while True:
                    await noticed.wait()
                    noticed.clear()
                    os.eventfd_read(notice)
                    # The removal of the cgroup is a notice, too.
                    if not (folder / "memory.oom_control").exists():
                        return
                    yield
            finally:
                loop.remove_reader(notice)
        finally:
            os.close(notice)


def _mounts() -> Iterator[tuple[str, Path]]:
    """Each controller and where its hierarchy is mounted."""
    for each in procfs.mounts():
        if each.kind == "cgroup":
            for option in each.options:
                yield option, each.point


def _number(file: Path) -> int:
    text = file.read_text().strip()
    return 0 if text == "max" else int(text)


def _pairs(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def _cpu(folder: Path, metrics: Metrics) -> None:
    found = _pairs(folder / "cpu.stat")
    assert metrics.cpu is not None
    metrics.cpu.throttling = Throttle(
        periods=found["nr_periods"],
        throttled_periods=found["nr_throttled"],
        throttled_time=found["throttled_time"],
    )


def _cpuacct(folder: Path, metrics: Metrics) -> None:
    ticks = _pairs(folder / "cpuacct.stat")
    assert metrics.cpu is not None
    metrics.cpu.usage = CpuUsage(
        total=_number(folder / "cpuacct.usage"),
        kernel=ticks["system"] * _NANOSECONDS_PER_TICK,
        user=ticks["user"] * _NANOSECONDS_PER_TICK,
        per_cpu=[int(number) for number in (folder / _PER_CPU).read_text().split()],
    )


def _pids(folder: Path, metrics: Metrics) -> None:
    metrics.pids = PidsStat(
        current=_number(folder / "pids.current"), limit=_number(folder / "pids.max")
    )


def _memory(folder: Path, metrics: Metrics) -> None:
    memory = MemoryStat()
    known = memory.__dict__
    for kernel_name, value in _pairs(folder / "memory.stat").items():
        total = "total_" if kernel_name.startswith("total_") else ""
        plain = kernel_name.removeprefix("total_")
        name = total + _MEMORY_NAMES.get(plain, plain)
        if name in known:
            setattr(memory, name, value)
    for field, infix in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem.")):
        setattr(memory, field, _memory_entry(folder, infix))
    memory.kernel_tcp = _memory_entry(folder, "kmem.tcp.")
    metrics.memory = memory
    oom = _pairs(folder / "memory.oom_control")
    metrics.memory_oom_control = MemoryOomControl(
        oom_kill_disable=oom.get("oom_kill_disable", 0),
        under_oom=oom.get("under_oom", 0),
        oom_kill=oom.get("oom_kill", 0),
    )


def _memory_entry(folder: Path, infix: str) -> MemoryEntry:
    entry = MemoryEntry()
    for field, name in (
        ("usage", "usage_in_bytes"),
        ("max", "max_usage_in_bytes"),
        ("failcnt", "failcnt"),
        ("limit", "limit_in_bytes"),
    ):
        with suppress(OSError):  # no swap, or no accounting of it
            setattr(entry, field, _number(folder / f"memory.{infix}{name}"))
    return entry


def _blkio(folder: Path, metrics: Metrics) -> None:
    names = _device_names()
    metrics.blkio = BlkIoStat()
    for files in (_BLKIO, _BLKIO_THROTTLE):
        found = False
        for file, field in files.items():
            with suppress(OSError):
                entries = list(_blkio_entries(folder / f"blkio.{file}", names))
                setattr(metrics.blkio, field, entries)
                found = found or bool(entries)
        if found:
            return


def _blkio_entries(file: Path, names: dict[tuple[int, int], str]) -> Iterator[BlkIoEntry]:
    for line in file.read_text().splitlines():
        device, *rest = line.split()
        if device != "Total":
            major, minor = map(int, device.split(":"))
            operation = rest[0] if len(rest) == 2 else ""
            yield BlkIoEntry(
                op=operation,
                device=names.get((major, minor), ""),
                major=major,
                minor=minor,
                value=int(rest[-1]),
            )


def _device_names() -> dict[tuple[int, int], str]:
    lines = (line.split() for line in Path("/proc/partitions").read_text().splitlines()[2:])
    return {(int(line[0]), int(line[1])): f"/dev/{line[3]}" for line in lines if len(line) == 4}


def _hugetlb(folder: Path, metrics: Metrics) -> None:
    for file in sorted(folder.glob("hugetlb.*.usage_in_bytes")):
        size = file.name.removeprefix("hugetlb.").removesuffix(".usage_in_bytes")
        if size.endswith(".rsvd"):  # what is reserved, of the same size
            continue
        metrics.hugetlb.append(
            HugetlbStat(
                usage=_number(file),
                max=_number(folder / f"hugetlb.{size}.max_usage_in_bytes"),
                failcnt=_number(folder / f"hugetlb.{size}.failcnt"),
                pagesize=size,
            )
        )


def _rdma(folder: Path, metrics: Metrics) -> None:
    metrics.rdma = RdmaStat(
        current=list(_rdma_entries(folder / "rdma.current")),
        limit=list(_rdma_entries(folder / "rdma.max")),
    )


def _rdma_entries(file: Path) -> Iterator[RdmaEntry]:
    for line in file.read_text().splitlines():
        device, *values = line.split()
        found = dict(value.split("=") for value in values)
        yield RdmaEntry(
            device=device,
            hca_handles=_limit(found.get("hca_handle", "0")),
            hca_objects=_limit(found.get("hca_object", "0")),
        )


def _limit(text: str) -> int:
    return 2**32 - 1 if text == "max" else int(text)


_READERS = {
    "cpu": _cpu,
    "cpuacct": _cpuacct,
    "pids": _pids,
    "memory": _memory,
    "blkio": _blkio,
    "hugetlb": _hugetlb,
    "rdma": _rdma,
}
