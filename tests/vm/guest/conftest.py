from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import daemons
from harness.client import Client
from harness.daemons import Taskd, client

# A machine in software, beside other tests, may be very slow.
daemons.START_SECONDS = 600.0
PATIENCE = """
[timeouts]
"io.containerd.timeout.task.state" = "60s"
"io.containerd.timeout.shim.load" = "60s"
"io.containerd.timeout.shim.cleanup" = "60s"
"io.containerd.timeout.shim.shutdown" = "60s"
"io.taskd.timeout.shim.start" = "300s"
"""


@pytest.fixture(scope="module")
def daemon(runc_shim: None) -> Iterator[Taskd]:
    """A taskd for all tests of a module, with one kind of shim: here it takes long to start."""
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with Taskd(folder / "taskd", "--log-level", "debug", settings=PATIENCE) as running:
        yield running
    print(running.log.read_text())
    shutil.rmtree(folder)


@pytest.fixture
async def ask(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)
