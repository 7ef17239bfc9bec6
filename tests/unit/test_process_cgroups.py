"""Cgroups of version 2 that the shim for plain processes makes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from harness.real import need

# With cgroups of version 2 alone, as nearly all machines have them.
ALONE = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
PROGRAM = """
import uuid
from pathlib import Path
from taskd_process.cgroup import Cgroup

root = Path("/sys/fs/cgroup")
name = f"test-{uuid.uuid4().hex}"
(cgroup,) = made = [Cgroup.make(f"/{name}/DEPTH")]
try:
    here = set((root / name / "DEPTH" / "cgroup.controllers").read_text().split())
    assert here, "no controllers"
    assert here == set((root / "cgroup.controllers").read_text().split())
finally:
    assert cgroup.remove()
    for folder in reversed([root / name, *(root / name).rglob("*/")]):
        if folder.exists():
            folder.rmdir()
"""


@pytest.mark.parametrize("depth", ["", "one", "one/two"])
def test_all_controllers_are_handed_down(depth: str) -> None:
    need("unshare", "mount")
    program = PROGRAM.replace("DEPTH", depth)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", ALONE, "-", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
