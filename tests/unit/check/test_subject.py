"""Which shim is meant, and how its containers are to be made."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from taskd import plugins
from taskd.check import PROGRAMS, Subject, find, own_programs, runtime_options
from taskd.check.programs import Program
from taskd.check.registry import NotApplicable
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


def test_programs_of_an_author() -> None:
    assert own_programs([]) is None
    subject = Subject(Path("/shim"), programs=own_programs(["exit=/exit.wasm", "sleep=/a=b"]))
    assert subject.command(PROGRAMS["exit"](3, 0.5)) == ["/exit.wasm", "3", "0.5"]
    assert subject.command(subject.several(2)) == ["/a=b"]
    assert subject.command(["/no/such/program"]) == ["/no/such/program"]
    with pytest.raises(NotApplicable, match="no program spawn is given"):
        subject.command(PROGRAMS["spawn"](1))
    shell = Subject(Path("/shim"))
    assert shell.command(shell.several(2))[-1] == "2"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("slep=/sleep", "no check runs a program slep; did you mean sleep?"),
        ("xyzzy=/x", "no check runs a program xyzzy; there are sleep, "),
        ("sleep", "program sleep: a path in the root filesystem is missing"),
        ("sleep=bin/sleep", "program sleep=bin/sleep: a path in the root filesystem is missing"),
    ],
)
def test_bad_programs(given: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        own_programs([given])


def test_what_the_programs_do_in_a_shell() -> None:
    def run(program: Program, **options: Any) -> tuple[int, str, str]:
        done = subprocess.run(
            program.command(None), capture_output=True, text=True, timeout=60, **options
        )
        return done.returncode, done.stdout, done.stderr

    call = PROGRAMS
    assert run(call["exit"](3)) == (3, "", "")
    assert run(call["exit"](4, 0.01)) == (4, "", "")
    assert run(call["echo"]("a b")) == (0, "a b\n", "")
    assert run(call["echo"]("a", "b", 5)) == (5, "a\n", "b\n")
    assert run(call["cat"](6), input="x\ny") == (6, "x\ny", "")
    assert run(call["zeros"](70000)) == (0, "\0" * 70000, "")
    assert run(call["words"]("a b", "", "c"), env={"A": "d  e"}) == (0, "a b,,c,d  e\n", "")
    assert run(call["pwd"], cwd="/proc") == (0, "/proc\n", "")
    assert run(call["terminal"], input="x\n") == (4, "", "got x\n")
    assert run(call["raise"](15))[0] == -15
    assert run(call["allocate"](1)) == (0, "", "")
