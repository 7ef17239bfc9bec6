"""Usage on cgroup v2: ours, field by field, as containerd's shim tells it of the same container."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from harness.client import RUNC, Client
from harness.containers import spec
from harness.real import BOTH_SHIMS
from vm.guest.tools import ROOT

from taskd import cgroups
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    ListPidsRequest,
    MetricsRequest,
    PauseTaskRequest,
    StartRequest,
)
from taskd.proto.io.containerd.cgroups.v2 import Metrics

pytestmark = pytest.mark.usefixtures("clean")

UNLIMITED = 2**64 - 1
# User-mode Linux has no huge pages; with Debian's own kernel they are limited and told, too.
HUGE = "hugetlb" in (ROOT / "cgroup.controllers").read_text().split()

LIMITS: dict[str, dict[str, Any]] = {
    "none": {},
    "all": {
        "pids": {"limit": 50},
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}] if HUGE else [],
    },
    "unlimited": {"pids": {"limit": -1}, "memory": {"limit": -1, "swap": -1}},
}

# Writes, reads, forks, and uses memory and processor.
BUSY = "dd if=/dev/zero of=/data/file bs=64k count=100; sync; cat /data/file; seq 3000; sleep 1000"

NEWER = ("psi", "max_usage", "swap_max_usage", "oom_group_kill", "_anon", "_file")
"""In what containerd's shims of these releases do not tell yet."""


def values(message: betterproto2.Message, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each number and text in a message, by its path."""
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        place = f"{path}.{field.name}".lstrip(".")
        if isinstance(value, list):
            for entry in value:
                key = getattr(entry, "pagesize", "") or getattr(entry, "device", "")
                key = key or f"{getattr(entry, 'major', '')}:{getattr(entry, 'minor', '')}"
                yield from values(entry, f"{place}[{key}]")
        elif isinstance(value, betterproto2.Message):
            yield from values(value, place)
        elif value is not None:
            yield place, value


async def begin(ask: Client, folder: Path, limits: dict[str, Any]) -> None:
    runtime = ContainerRuntime(name=RUNC)
    (folder / "data").mkdir()
    document = spec(
        ask.rootfs, ["/bin/sh", "-c", BUSY], binds={"/data": folder / "data"}, resources=limits
    )
    container = Container(id="one", runtime=runtime, spec=document)
    await ask.containers.create(CreateContainerRequest(container=container))
    await ask.tasks.create(CreateTaskRequest(container_id="one"))
    await ask.tasks.start(StartRequest(container_id="one"))


async def told(ask: Client) -> Metrics:
    (metric,) = (await ask.tasks.metrics(MetricsRequest(filters=["id==one"]))).metrics
    assert metric.data is not None
    assert metric.data.type_url.endswith("io.containerd.cgroups.v2.Metrics")
    return Metrics.parse(metric.data.value)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
async def test_every_field(ask: Client, folder: Path, limits: dict[str, Any]) -> None:
    """What moves on meanwhile lies between what we read before and after."""
    await begin(ask, folder, limits)
    pid = (await ask.tasks.list_pids(ListPidsRequest(container_id="one"))).processes[0].pid
    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    own = cgroups.of(pid)
    different: dict[str, Any] = {}
    for _ in range(5):
        before = dict(values(own.stats()))
        theirs = dict(values(await told(ask)))
        after = dict(values(own.stats()))
        different = {
            place: (before.get(place), theirs.get(place), after.get(place))
            for place in before.keys() | theirs.keys() | after.keys()
            if not any(part.endswith(NEWER) for part in place.split("."))
            and not lies_between(theirs.get(place), before.get(place), after.get(place))
        }
        if not different:
            break
    print({place: value for place, value in theirs.items() if value})
    print({p: v for p, v in before.items() if any(part.endswith(NEWER) for part in p.split("."))})
    assert not different
    await ask.end("one")


def lies_between(theirs: Any, before: Any, after: Any) -> bool:
    if isinstance(theirs, int | float) and before is not None and after is not None:
        return bool(min(before, after) <= theirs <= max(before, after))
    return bool(theirs == before == after)


@BOTH_SHIMS
async def test_limits_are_told(ask: Client, folder: Path) -> None:
    await begin(ask, folder, LIMITS["all"])
    usage = await told(ask)
    assert usage.pids is not None
    assert usage.memory is not None
    assert usage.pids.limit == 50
    assert (usage.memory.usage_limit, usage.memory.swap_limit) == (64 << 20, 32 << 20)
    limits = {each.pagesize: each.max for each in usage.hugetlb}
    assert limits.get("2MB") == (4 << 20 if HUGE else None)
    sizes = [each.pagesize for each in usage.hugetlb]
    assert len(sizes) == len(set(sizes))
    await ask.end("one")


@BOTH_SHIMS
async def test_no_limits_are_told(ask: Client, folder: Path) -> None:
    await begin(ask, folder, {})
    usage = await told(ask)
    assert usage.pids is not None
    assert usage.memory is not None
    assert usage.pids.limit == usage.memory.usage_limit == UNLIMITED
    await ask.end("one")
