"""Moves between cgroups do not undo those of others."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

from harness.real import need

from taskd import procfs

SCRIPT = """
import os, sys, time
from taskd import moves, procfs
moves.expect()
time.sleep(0.01)
for move in range(20):
    place = sys.argv[1 + move % 2]
    with open(place, "w") as procs:
        procs.write(str(os.getpid()))
    moves.expect()
    time.sleep(0.012)
    print(next(procfs.cgroups("self"))[2].rpartition("/")[2])
"""


def test_a_process_stays_where_others_move_it() -> None:
    need()
    number, controllers, path = next(procfs.cgroups("self"))
    name = "" if number == "0" else ",".join(controllers).removeprefix("name=")
    own = Path("/sys/fs/cgroup", name, path.lstrip("/"))
    places = [own / f"moves-{uuid.uuid4().hex[:8]}-{each}" for each in "ab"]
    for place in places:
        place.mkdir()
    try:
        files = [str(place / "cgroup.procs") for place in places]
        command = [sys.executable, "-c", SCRIPT, *files]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    finally:
        for place in places:
            place.rmdir()
    assert done.stdout.splitlines() == [place.name for place in places] * 10
