"""A daemon that is killed between any two steps loses nothing, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import killed_snapshots


@pytest.mark.parametrize("name", ["overlayfs", "native"])
def test_killed_before_each_step(name: str) -> None:
    # In memory: nothing is to wait for a disk, whose power is not cut.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, killed_snapshots.__file__, folder, name],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
