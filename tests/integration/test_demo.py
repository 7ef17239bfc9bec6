"""``taskd demo``, without root."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from harness.real import AS_NOBODY, NOBODY, need


def test_it_shows_a_life_and_leaves_nothing(folder: Path) -> None:
    need("setpriv")
    os.chown(folder, NOBODY, NOBODY)
    places = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder), "HOME": "/nonexistent"}
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-m", "taskd", "demo"],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^output +hello from process \d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^task +exited with status 42$", done.stdout, re.MULTILINE)
    told = re.findall(r"^event +(/\S+)", done.stdout, re.MULTILINE)
    assert told == [
        *("/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"),
        "/containers/delete",
    ]
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []
    used = [link for link in Path("/proc").glob("[0-9]*/cwd") if _within(link, folder)]
    assert used == []


def _within(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False
