from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.client import Client
from harness.daemons import Taskd, client


@pytest.fixture(scope="module")
def daemon(runc_shim: None) -> Iterator[Taskd]:
    """A taskd for all tests of a module, with one kind of shim: here it takes long to start."""
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with Taskd(folder / "taskd", "--log-level", "debug") as running:
        yield running
    print(running.log.read_text())
    shutil.rmtree(folder)


@pytest.fixture
async def ask(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)
