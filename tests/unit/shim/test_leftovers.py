"""Who is killed in the end, and who is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd import procfs
from taskd.shim import leftovers

SCRIPT = """
import os, time
for own_group in (True, False):
    if os.fork() == 0:
        if own_group:
            os.setpgid(0, 0)
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(1000)
"""


def state(pid: int) -> str:
    try:
        return procfs.stat(pid).state
    except OSError:
        return ""


@pytest.fixture
def members() -> Iterator[list[int]]:
    """Of a session whose leader has ended: one in its group, and one in a group of its own."""
    leader = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    found = [*(int(leader.stdout.readline()) for _ in range(2)), leader.pid]
    yield found
    for pid in found[:2]:
        if state(pid):
            os.kill(pid, signal.SIGKILL)
    leader.wait()
    leader.stdout.close()


def until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(state(pid) not in ("", "Z") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_those_who_outlive_their_leader(tmp_path: Path, members: list[int]) -> None:
    *children, leader = members
    assert {procfs.stat(pid).session for pid in children} == {leader}
    assert len({procfs.stat(pid).group for pid in children}) == 2
    leftovers.note(tmp_path, leader)
    os.waitpid(leader, 0)
    leftovers.kill(tmp_path)
    until_gone(children)


@pytest.mark.parametrize("later", [True, False])
def test_not_somebody_else_of_that_number(tmp_path: Path, members: list[int], later: bool) -> None:
    """The one that was noted was another, who was started before or after."""
    *children, leader = members
    if later:
        # The leader is there, and is not the one; nobody is a member of the other's session then.
        started = procfs.stat(leader).started - 1
    else:
        started = max(procfs.stat(pid).started for pid in children) + 1
    (tmp_path / "processes").write_text(f"{leader} {started}\n")
    leftovers.kill(tmp_path)
    time.sleep(0.1)
    assert {state(pid) for pid in children} == {"S"}


def test_nothing_noted(tmp_path: Path) -> None:
    leftovers.kill(tmp_path)
    leftovers.note(tmp_path, 4_000_000)
    leftovers.kill(tmp_path)
