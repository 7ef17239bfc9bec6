"""What a virtual machine's tests did is what is told of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vm.machine import Report, cases

TESTS = """
import pytest
def test_well(): pass
def test_wrong(): assert 1 == 2
@pytest.fixture
def broken(): raise OSError("no such thing")
def test_with_a_broken_fixture(broken): pass
def test_left_out(): pytest.skip("no reason")
"""


def test_all_but_what_passed_is_bad(tmp_path: Path) -> None:
    file, junit = tmp_path / "test_some.py", tmp_path / "junit.xml"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, "--rootdir", tmp_path, f"--junit-xml={junit}", file],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    report = Report(cases(junit.read_text()), "", 60.0)
    assert {case.name.rpartition(".")[2]: case.outcome for case in report.bad} == {
        "test_wrong": "failed",
        "test_with_a_broken_fixture": "error",
        "test_left_out": "skipped",
    }
    assert "1 == 2" in next(case.words for case in report.bad if case.outcome == "failed")
    assert str(report) == "1 passed, 1 failed, 1 error, 1 skipped in 60 s"
