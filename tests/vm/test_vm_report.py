"""What a virtual machine's tests did is what is told of them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from vm.machine import Report, read
from vm.plans import GROUPS, chosen

TESTS = """
import pytest
def test_well(): pass
def test_wrong(): assert 1 == 2
@pytest.fixture
def broken(): raise OSError("no such thing")
def test_with_a_broken_fixture(broken): pass
@pytest.fixture
def messy(): yield; raise OSError("no such thing")
def test_with_a_broken_end(messy): pass
def test_left_out(): pytest.skip("no reason")
"""
DEADLY = "import os\ndef test_well(): pass\ndef test_end(): os._exit(1)\ndef test_after(): pass\n"


def told(folder: Path, tests: str, passed: str = "") -> Report:
    """What there is after a run, on what is a disk in a machine."""
    (folder / "test_some.py").write_text(tests)
    (folder / "passed").write_text(passed)
    results = folder / "results"
    results.write_bytes(bytes(1 << 20))
    places = {"TASKD_RESULTS": str(results), "TASKD_PASSED": str(folder / "passed")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    subprocess.run(
        [*command, "-p", "vm.guest.report", "test_some.py"],
        env={**os.environ, **places, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return read(results)


def test_all_but_what_passed_is_bad(tmp_path: Path) -> None:
    report = told(tmp_path, TESTS)
    assert {case.name.rpartition("::")[2]: case.outcome for case in report.bad} == {
        "test_wrong": "failed",
        "test_with_a_broken_fixture": "error",
        "test_with_a_broken_end": "error",
        "test_left_out": "skipped",
    }
    assert "1 == 2" in next(case.words for case in report.bad if case.outcome == "failed")
    assert str(report) == "1 passed, 1 failed, 2 error, 1 skipped of 5 in 0 s"


def test_what_was_done_before_the_end_is_told(tmp_path: Path) -> None:
    """And the next run goes on after it, and tells it as one that was asked for."""
    report = told(tmp_path, DEADLY)
    assert [(case.name, case.outcome) for case in report.cases] == [
        ("test_some.py::test_well", "passed")
    ]
    assert len(report.collected) == 3
    again = told(tmp_path, DEADLY.replace("os._exit(1)", "pass"), "test_some.py::test_well\n")
    assert [case.name for case in again.cases] == [
        "test_some.py::test_end",
        "test_some.py::test_after",
    ]
    assert again.collected == report.collected


def test_groups_are_chosen_by_name_or_file() -> None:
    assert chosen("") == GROUPS
    assert [group.name for group in chosen("v1 docker")] == ["v1", "docker"]
    (file,) = chosen("tests/integration/test_crun.py")
    assert file.tests == ("tests/integration/test_crun.py",)
    with pytest.raises(ValueError, match="no group 'dcoker'"):
        chosen("dcoker")


def test_the_files_of_groups_are_there() -> None:
    for group in GROUPS:
        for each in takewhile(lambda word: word[0] != "-", group.tests):
            assert (Path(__file__).parents[2] / each.partition("::")[0]).exists(), each
