"""``taskd demo``, without root."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.real import AS_NOBODY, NOBODY, need
from harness.shell import Shell


def test_it_shows_a_life_and_leaves_nothing(folder: Path) -> None:
    need("setpriv")
    os.chown(folder, NOBODY, NOBODY)
    places = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder), "HOME": "/nonexistent"}
    shown = Shell(os.environ | places, AS_NOBODY).out("demo")
    assert re.search(r"^output +hello from process \d+$", shown, re.MULTILINE)
    assert re.search(r"^task +exited with status 42$", shown, re.MULTILINE)
    told = re.findall(r"^event +(/\S+)", shown, re.MULTILINE)
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
