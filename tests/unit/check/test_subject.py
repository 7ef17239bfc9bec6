"""Which shim is meant, and how its containers are to be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from taskd import plugins
from taskd.check import find, runtime_options
from taskd.errors import InvalidArgument
from taskd.proto.containerd.runc.v1 import Options


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "containerd-shim-thing-v1"
    shutil.copy("/bin/true", shim)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find(str(shim)) == shim
    assert find("containerd-shim-thing-v1") == shim
    assert find("io.example.thing.v1") == shim
    assert find("io.taskd.process.v1") == plugins.executable("io.taskd.process.v1")
    monkeypatch.chdir(tmp_path)
    assert find("./containerd-shim-thing-v1") == shim


@pytest.mark.parametrize("name", ["/no/such/shim", "/tmp", "thing", "io.example.none.v1", ""])
def test_what_is_no_shim(name: str) -> None:
    with pytest.raises(InvalidArgument):
        find(name)


def test_options() -> None:
    assert runtime_options([]) == Options()
    given = ["BinaryName=crun", "Root=/run/x=y", "SystemdCgroup=true", "io_uid=7"]
    assert runtime_options(given) == Options(
        binary_name="crun", root="/run/x=y", systemd_cgroup=True, io_uid=7
    )


@pytest.mark.parametrize("given", ["NoSuch=1", "BinaryName", "SystemdCgroup=maybe", "IoUid=x"])
def test_bad_options(given: str) -> None:
    with pytest.raises(InvalidArgument, match=given.partition("=")[0]):
        runtime_options([given])
