"""docs/client.md and docs/testing.md: what they say is so, block by block."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.documents import Command, File, blocks, pattern
from harness.leaks import leaving_nothing
from harness.servers import SERVERS, Server

DOCS = Path(__file__).parents[3] / "docs"


def follow(document: Path, folder: Path, environment: dict[str, str]) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for step in blocks(document):
        if isinstance(step, File):
            (folder / step.path).write_text(step.text)
            continue
        done = subprocess.run(
            ["bash", "-c", step.line],
            cwd=folder,
            env=os.environ | {"PATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, (step, done.stdout)
        assert re.fullmatch(pattern(step.shown), done.stdout), (step, done.stdout)


@pytest.mark.parametrize("server", [SERVERS[0], SERVERS[-1]], ids=str)
def test_the_client(server: Server, folder: Path, rootfs: Path) -> None:
    with server.running() as daemon, leaving_nothing(daemon, "default"):
        environment = {"ROOTFS": str(rootfs), "TASKD_ADDRESS": str(daemon.address)}
        follow(DOCS / "client.md", folder, environment)


def test_the_plugin(folder: Path) -> None:
    options = "-p no:cacheprovider -o asyncio_default_fixture_loop_scope=function"
    follow(DOCS / "testing.md", folder, {"PYTEST_ADDOPTS": options})


def test_the_first_program_is_small() -> None:
    (first, *_) = (step for step in blocks(DOCS / "client.md") if isinstance(step, File))
    assert first.path == "ten.py"
    assert len(first.text.splitlines()) <= 25
    for name, least in (("client.md", 4), ("testing.md", 1)):
        assert sum(isinstance(step, Command) for step in blocks(DOCS / name)) >= least
