"""Processes of shims are renewed all the time: no client notices, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.lifecycles import told
from faults.survivors import OCI, PROCESS, Survivor, all_live
from harness.daemons import Taskd, client
from harness.leaks import leaving_nothing
from harness.real import need

from taskd import pidfd
from taskd.proto.taskd.v1 import RenewShimsRequest, ShimsStub

CONTAINERS = 8
AT_ONCE = 4
LINES = 40
pytestmark = [
    pytest.mark.skipif(
        not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
    ),
    pytest.mark.timeout(300),
]


class Undisturbed(Survivor):
    """Each of whose calls is answered as if nothing was."""

    async def _until(self, stub: Any, method: str, request: object, done: str = "") -> Any:
        async with client(self._daemon.address, self._namespace) as channel:
            return await asyncio.wait_for(getattr(stub(channel), method)(request), 60)


@pytest.fixture(params=[1, 10], ids=["a shim each", "pools of ten"])
def daemon(folder: Path, request: pytest.FixtureRequest) -> Iterator[Taskd]:
    need("runc", "busybox")
    settings = f'[shims]\nadopt = true\npool = {request.param}\nidle = "0.5s"\n'
    with Taskd(folder / "taskd", "--log-level", "debug", settings=settings) as running:
        yield running
    # Shown if the test fails.
    print(running.log.read_text())


async def test_nobody_notices(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    survivors = [
        Undisturbed(daemon, namespace, rootfs, number, (OCI, PROCESS)[number % 2], LINES)
        for number in range(CONTAINERS)
    ]
    renewed = Counter[str]()

    with leaving_nothing(daemon, namespace):
        running = asyncio.create_task(all_live(survivors, AT_ONCE))
        async with client(daemon.address, namespace) as channel:
            while not running.done():
                async for answer in ShimsStub(channel).renew(RenewShimsRequest()):
                    renewed[answer.reason or ("goes on" if answer.pid else "ended")] += 1
        await running
    print(dict(renewed))
    assert renewed["goes on"] >= CONTAINERS
    steps = told(daemon.root, namespace)
    for each in survivors:
        assert each.output.decode() == each.wanted.decode(), each.id
        assert each.exits == [each.status, each.status], each.id
        assert steps[each.id] == ["create", "start", "exit", "delete"], each.id
