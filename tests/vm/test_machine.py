"""The short form of `make vm`: a Debian 12 with systemd and cgroup v2, in which tests run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from harness.real import need
from vm.image import BOOKWORM, bootstrap, build
from vm.machine import run
from vm.plans import SHORT


# It takes some two minutes alone; here others use the processors, too.
@pytest.mark.timeout(2400)
def test_what_only_a_real_machine_shows() -> None:
    need("mmdebstrap", "mke2fs", "debugfs")
    folder = Path(tempfile.mkdtemp(prefix="taskd-vm-"))
    made = folder / "made"
    made.mkdir()
    try:
        image = build(BOOKWORM, bootstrap(BOOKWORM, folder / "tree"), made)
        report = run(image, SHORT, folder, timeout=1800)
    finally:
        shutil.rmtree(folder)
    print(report.log)
    print(report)
    words = [f"{case.name}: {case.outcome}\n{case.words}" for case in report.bad]
    assert not words, "\n\n".join(words)
    assert report.cases
