"""Processes that are made ready, and wait."""

from __future__ import annotations

import os
from pathlib import Path

from taskd_process.launch import Launch

from taskd.shim.reaper import Reaper

SPEC = {"args": ["/bin/sh", "-c", "ls /proc/self/fd"], "cwd": "/", "env": []}


async def test_what_waits_has_nothing_of_other_containers(reaper: Reaper, tmp_path: Path) -> None:
    others, writer = os.pipe()
    null, out = os.open(os.devnull, os.O_RDWR), os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with reaper.starting():
        launch = await Launch.prepare(SPEC, (null, out, out), terminal=False)
        end = reaper.end(launch.pid)
    os.close(writer)
    os.set_blocking(others, False)
    assert os.read(others, 1) == b""  # nobody else has it
    await launch.release()
    assert (await end).status == 0
    assert (tmp_path / "out").read_text().split() == ["0", "1", "2", "3"]  # ls itself has one
    for descriptor in (others, null, out):
        os.close(descriptor)
