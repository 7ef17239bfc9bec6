"""What containers use, in the same words for both versions of cgroups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskd.codec import MalformedMessage, decode
from taskd.wellknown import nanoseconds

if TYPE_CHECKING:
    from taskd.proto.containerd.types import Metric
    from taskd.proto.io.containerd.cgroups import v1, v2

__all__ = ["Stats", "limit"]

_NONE = 1 << 62
"""What is larger than this is no limit: cgroup v1 has the largest multiple of a page."""


@dataclass(frozen=True, slots=True)
class Stats:
    """One measurement; sizes are bytes."""

    id: str
    at: int
    """When, in nanoseconds since the epoch."""
    cpu: int
    """Processor time since it was made, in nanoseconds."""
    memory: int
    """In use, without what could be dropped from the page cache."""
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    read: int
    """From block devices."""
    written: int
    oom: int | None
    """How often memory has run out; None if that is not counted."""

    @classmethod
    def from_message(cls, metric: Metric) -> Stats | None:
        """None for a kind of metrics that is not known, and for none."""
        from taskd.proto.io.containerd.cgroups.v1 import Metrics as V1
        from taskd.proto.io.containerd.cgroups.v2 import Metrics as V2

        if metric.data is None:
            return None
        at = nanoseconds(metric.timestamp)
        try:
            match metric.data.type_url.rpartition("/")[2]:
                case "io.containerd.cgroups.v1.Metrics":
                    return _v1(metric.id, at, decode(V1, metric.data.value))
                case "io.containerd.cgroups.v2.Metrics":
                    return _v2(metric.id, at, decode(V2, metric.data.value))
        except MalformedMessage:
            pass
        return None


def limit(number: int) -> int | None:
    """None for what is so large that it is none."""
    return number if 0 < number < _NONE else None


def _v1(id: str, at: int, found: v1.Metrics) -> Stats:  # noqa: A002
    memory = found.memory
    usage = memory.usage if memory else None
    entries = found.blkio.io_service_bytes_recursive if found.blkio else []
    return Stats(
        id,
        at,
        cpu=found.cpu.usage.total if found.cpu and found.cpu.usage else 0,
        memory=max(0, usage.usage - memory.total_inactive_file) if memory and usage else 0,
        memory_limit=limit(usage.limit) if usage else None,
        pids=found.pids.current if found.pids else 0,
        pids_limit=limit(found.pids.limit) if found.pids else None,
        read=sum(each.value for each in entries if each.op.lower() == "read"),
        written=sum(each.value for each in entries if each.op.lower() == "write"),
        oom=found.memory_oom_control.oom_kill if found.memory_oom_control else None,
    )


def _v2(id: str, at: int, found: v2.Metrics) -> Stats:  # noqa: A002
    memory = found.memory
    entries = found.io.usage if found.io else []
    return Stats(
        id,
        at,
        cpu=found.cpu.usage_usec * 1000 if found.cpu else 0,
        memory=max(0, memory.usage - memory.inactive_file) if memory else 0,
        memory_limit=limit(memory.usage_limit) if memory else None,
        pids=found.pids.current if found.pids else 0,
        pids_limit=limit(found.pids.limit) if found.pids else None,
        read=sum(each.rbytes for each in entries),
        written=sum(each.wbytes for each in entries),
        oom=found.memory_events.oom_kill if found.memory_events else None,
    )
