"""Where a shim's own process is put: what is tried for real stands in `test_shim_command`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskd.codec import encode
from taskd.errors import TaskdError
from taskd.proto.containerd.runc.v1 import Options
from taskd.shim import placement
from taskd.shim.request import StartRequest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(placement, "_ROOT", tmp_path)
    return tmp_path


def join(name: str) -> None:
    options = encode(Options(shim_cgroup=name))
    placement.join_cgroup(StartRequest((("containerd.runc.v1.Options", options),)))


@pytest.mark.parametrize("unified", [True, False])
def test_a_cgroup_that_is_there(root: Path, unified: bool) -> None:
    places = [root] if unified else [root / "pids", root / "memory"]
    for place in places:
        (place / "shims").mkdir(parents=True)
        (place / "shims/cgroup.procs").touch()
    if unified:
        (root / "cgroup.controllers").touch()
    join("/shims")
    for place in places:
        assert (place / "shims/cgroup.procs").read_text() == str(os.getpid())


def test_none_of_that_name_in_several_hierarchies(root: Path) -> None:
    (root / "pids").mkdir()
    with pytest.raises(TaskdError) as raised:
        join("/no/such")
    assert raised.value.message == "failed to load cgroup /no/such: cgroups: cgroup deleted"


def test_none_of_that_name_in_cgroup_v2(root: Path) -> None:
    """There containerd finds out when it opens the file."""
    (root / "cgroup.controllers").touch()
    file = root / "no/such/cgroup.procs"
    with pytest.raises(TaskdError) as raised:
        join("/no/such")
    words = f"failed to join cgroup /no/such: open {file}: no such file or directory"
    assert raised.value.message == words
