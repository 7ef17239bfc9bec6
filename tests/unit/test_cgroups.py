"""What is read of cgroups, from files such as the kernel has in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest

from taskd.cgroups import v1, v2
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.v1 import LinuxTaskClient
from taskd.wellknown import unpack

UNLIMITED = 2**64 - 1


def lay_out(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def test_rdma_is_told_of_where_there_is_none(tmp_path: Path) -> None:
    """Empty, as containerd's shim has it."""
    assert v2.Cgroup(lay_out(tmp_path, {"pids.current": "3"})).stats().rdma == v2.RdmaStat()
    lay_out(tmp_path, {"rdma.current": "mlx4_0 hca_handle=2 hca_object=2000"})
    rdma = v2.Cgroup(tmp_path).stats().rdma
    assert rdma is not None
    (entry,) = rdma.current
    assert (entry.device, entry.hca_handles, entry.hca_objects) == ("mlx4_0", 2, 2000)


@pytest.mark.parametrize(("limit", "told"), [("max", UNLIMITED), ("0", 0), ("17", 17)])
def test_limits_of_v2(tmp_path: Path, limit: str, told: int) -> None:
    """None at all is the largest number, which containerd's clients know as that."""
    names = ("memory.max", "memory.swap.max", "pids.max", "hugetlb.2MB.max")
    usage = dict.fromkeys(("pids.current", "hugetlb.2MB.current"), "3")
    files = usage | dict.fromkeys(names, limit) | {"memory.stat": "anon 4096"}
    files["hugetlb.2MB.events"] = "max 0"
    found = v2.Cgroup(lay_out(tmp_path, files)).stats()
    assert found.pids is not None
    assert found.memory is not None
    (huge,) = found.hugetlb
    assert (found.pids.current, huge.current, found.memory.anon) == (3, 3, 4096)
    limits = (found.pids.limit, found.memory.usage_limit, found.memory.swap_limit, huge.max)
    assert limits == (told,) * 4


def test_a_cgroup_that_is_gone_is_not_one_without_usage(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for cgroup in (v1.Cgroup({"pids": gone, "memory": gone}), v1.Cgroup({}), v2.Cgroup(gone)):
        with pytest.raises(FileNotFoundError):
            cgroup.stats()


@pytest.mark.parametrize(("limit", "told"), [("max", 0), ("17", 17)])
def test_limit_of_pids_of_v1(tmp_path: Path, limit: str, told: int) -> None:
    """Here containerd's library takes none for 0."""
    lay_out(tmp_path, {"pids.current": "3", "pids.max": limit})
    found = v1.Cgroup({"pids": tmp_path}).stats()
    assert found.pids is not None
    assert (found.pids.current, found.pids.limit) == (3, told)


SIZES = ("64KB", "2MB", "1GB")


def test_each_size_of_huge_pages_is_told_once_of_v2(tmp_path: Path) -> None:
    files = {}
    for number, size in enumerate(SIZES):
        values = {"current": number, "max": "max", "rsvd.current": 99, "events": f"max {number}"}
        files |= {f"hugetlb.{size}.{name}": str(value) for name, value in values.items()}
    found = v2.Cgroup(lay_out(tmp_path, files)).stats().hugetlb
    told = {(each.pagesize, each.current, each.max, each.failcnt) for each in found}
    expected = {(size, number, UNLIMITED, number) for number, size in enumerate(SIZES)}
    assert (told, len(found)) == (expected, len(SIZES))


def test_each_size_of_huge_pages_is_told_once_of_v1(tmp_path: Path) -> None:
    files = {}
    for number, size in enumerate(SIZES):
        for infix, value in {"": number, "rsvd.": 99}.items():
            for name in ("usage_in_bytes", "max_usage_in_bytes", "failcnt"):
                files[f"hugetlb.{size}.{infix}{name}"] = str(value)
    found = v1.Cgroup({"hugetlb": lay_out(tmp_path, files)}).stats().hugetlb
    told = {(each.pagesize, each.usage, each.max, each.failcnt) for each in found}
    expected = {(size, number, number, number) for number, size in enumerate(SIZES)}
    assert (told, len(found)) == (expected, len(SIZES))


async def test_usage_of_runtime_v1_is_of_the_version_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shims measure nothing: the daemon does."""
    lay_out(tmp_path, {"cgroup.controllers": "pids", "pids.current": "3", "pids.max": "17"})
    monkeypatch.setattr(v2, "ROOT", tmp_path)
    monkeypatch.setattr(v2.Cgroup, "of", lambda _: v2.Cgroup(tmp_path))
    bundle = Bundle("some", "one", tmp_path)
    task = LinuxTaskClient(Mock(), bundle, Bootstrap("unix://none", "ttrpc", 1), Mock())
    told = await task.stats(timeout=1.0)
    assert told is not None
    found = unpack(told)
    assert isinstance(found, v2.Metrics)
    assert found.pids is not None
    assert (found.pids.current, found.pids.limit) == (3, 17)
