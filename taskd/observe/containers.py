"""Metrics of containers, under containerd's names (its ``metrics/cgroups``).

What is measured comes from the shims. A name is ``container_``, what it is, and its unit; the
labels are the container, its namespace and its runtime, and those of the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily

from taskd.codec import MalformedMessage, decode
from taskd.proto.io.containerd.cgroups.v1 import Metrics as V1
from taskd.proto.io.containerd.cgroups.v2 import Metrics as V2
from taskd.tasks.service import Usage

__all__ = ["families"]


class _Value(NamedTuple):
    name: str
    unit: str
    path: str
    """Where it is in the message; of a list, each element is meant."""
    labels: tuple[tuple[str, str], ...] = ()
    """Further labels, and where they are in the list's element; an empty path is its index."""


_DEVICE = (("op", "op"), ("device", "device"), ("major", "major"), ("minor", "minor"))
_NUMBERS = (("major", "major"), ("minor", "minor"))
_PAGE = (("page", "pagesize"),)

_V1_MEMORY = {
    **{
        name: name
        for name in [
            "cache",
            "rss",
            "rss_huge",
            "mapped_file",
            "dirty",
            "writeback",
            "inactive_anon",
            "active_anon",
            "inactive_file",
            "active_file",
            "unevictable",
            "hierarchical_memory_limit",
            "total_cache",
            "total_rss",
            "total_rss_huge",
            "total_mapped_file",
            "total_dirty",
            "total_writeback",
            "total_inactive_anon",
            "total_active_anon",
            "total_inactive_file",
            "total_active_file",
            "total_unevictable",
        ]
    },
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    **{
        f"{total}{name}": f"{total}{field}"
        for total in ("", "total_")
        for name, field in (
            ("pgpgin", "pg_pg_in"),
            ("pgpgout", "pg_pg_out"),
            ("pgfault", "pg_fault"),
            ("pgmajfault", "pg_maj_fault"),
        )
    },
}

_V1 = (
    _Value("cpu_total", "nanoseconds", "cpu.usage.total"),
    _Value("cpu_kernel", "nanoseconds", "cpu.usage.kernel"),
    _Value("cpu_user", "nanoseconds", "cpu.usage.user"),
    _Value("per_cpu", "nanoseconds", "cpu.usage.per_cpu", (("cpu", ""),)),
    _Value("cpu_throttle_periods", "total", "cpu.throttling.periods"),
    _Value("cpu_throttled_periods", "total", "cpu.throttling.throttled_periods"),
    _Value("cpu_throttled_time", "nanoseconds", "cpu.throttling.throttled_time"),
    *(
        _Value(f"memory_{name}", "bytes", f"memory.{field}")
        for name, field in sorted(_V1_MEMORY.items())
    ),
    *(
        _Value(f"memory_{name}_{what}", "total" if what == "failcnt" else "bytes", f"{path}.{what}")
        for name, path in (
            ("usage", "memory.usage"),
            ("swap", "memory.swap"),
            ("kernel", "memory.kernel"),
            ("kerneltcp", "memory.kernel_tcp"),
        )
        for what in ("failcnt", "limit", "max", "usage")
    ),
    _Value("pids_current", "", "pids.current"),
    _Value("pids_limit", "", "pids.limit"),
    *(
        _Value(
            f"blkio_{name}",
            "bytes" if name == "io_service_bytes_recursive" else "total",
            f"blkio.{name}.value",
            _DEVICE,
        )
        for name in (
            "io_merged_recursive",
            "io_queued_recursive",
            "io_service_bytes_recursive",
            "io_service_time_recursive",
            "io_serviced_recursive",
            "io_time_recursive",
            "sectors_recursive",
        )
    ),
    _Value("hugetlb_usage", "bytes", "hugetlb.usage", _PAGE),
    _Value("hugetlb_failcnt", "total", "hugetlb.failcnt", _PAGE),
    _Value("hugetlb_max", "bytes", "hugetlb.max", _PAGE),
)

_V2 = (
    *(
        _Value(f"cpu_{name}", unit, f"cpu.{name}")
        for name, unit in (
            ("usage_usec", "microseconds"),
            ("user_usec", "microseconds"),
            ("system_usec", "microseconds"),
            ("nr_periods", "total"),
            ("nr_throttled", "total"),
            ("throttled_usec", "microseconds"),
        )
    ),
    *(
        _Value(f"memory_{name}", "bytes", f"memory.{name}")
        for name in [
            "usage",
            "usage_limit",
            "swap_usage",
            "swap_limit",
            "file_mapped",
            "file_dirty",
            "file_writeback",
            "pgactivate",
            "pgdeactivate",
            "pgfault",
            "pgmajfault",
            "pglazyfree",
            "pgrefill",
            "pglazyfreed",
            "pgscan",
            "pgsteal",
            "inactive_anon",
            "active_anon",
            "inactive_file",
            "active_file",
            "unevictable",
            "anon",
            "file",
            "kernel_stack",
            "slab",
            "sock",
            "shmem",
            "anon_thp",
            "slab_reclaimable",
            "slab_unreclaimable",
            "workingset_refault",
            "workingset_activate",
            "workingset_nodereclaim",
            "thp_fault_alloc",
            "thp_collapse_alloc",
        ]
    ),
    _Value("memory_oom", "total", "memory_events.oom"),
    _Value("io_rbytes", "bytes", "io.usage.rbytes", _NUMBERS),
    _Value("io_wbytes", "bytes", "io.usage.wbytes", _NUMBERS),
    _Value("io_rios", "total", "io.usage.rios", _NUMBERS),
    _Value("io_wios", "total", "io.usage.wios", _NUMBERS),
    _Value("pids", "current", "pids.current"),
    _Value("pids", "limit", "pids.limit"),
)

_KINDS: dict[str, tuple[type[V1] | type[V2], tuple[_Value, ...]]] = {
    "io.containerd.cgroups.v1.Metrics": (V1, _V1),
    "io.containerd.cgroups.v2.Metrics": (V2, _V2),
}


def families(usages: Iterable[Usage]) -> Iterable[GaugeMetricFamily]:
    """What Prometheus is told of containers. Shims' own kinds of metrics are left out."""
    found: dict[str, GaugeMetricFamily] = {}
    for usage in usages:
        kind = _KINDS.get(usage.stats.type_url.rpartition("/")[2])
        if kind is None:
            continue
        message_type, values = kind
        try:
            message = decode(message_type, usage.stats.value)
        except MalformedMessage:
            continue
        known = (usage.id, usage.namespace, usage.runtime)
        for value in values:
            name = "_".join(filter(None, ("container", value.name, value.unit)))
            for labels, number in _read(message, value):
                if name not in found:
                    labelled = ("container_id", "namespace", "runtime")
                    names = [*labelled, *(label for label, _ in value.labels)]
                    found[name] = GaugeMetricFamily(name, f"cgroup: {value.path}", labels=names)
                found[name].add_metric([*known, *labels], number)
    return found.values()


def _read(message: Any, value: _Value) -> Iterator[tuple[list[str], float]]:
    """Values and the labels of each; none for what the shim did not measure."""
    for step in value.path.split("."):
        if isinstance(message, list):
            for element in message:
                yield (
                    [str(getattr(element, path)) for _, path in value.labels],
                    getattr(element, step),
                )
            return
        message = getattr(message, step)
        if message is None:
            return
    if isinstance(message, list):
        yield from (([str(index)], number) for index, number in enumerate(message))
    else:
        yield [], message
