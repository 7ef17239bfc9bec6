"""Shims of ours are killed at random, and the daemon too: containers go on as if nothing was."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults.lifecycles import told
from faults.survivors import OCI, PROCESS, Survivor, all_live
from grpclib.exceptions import GRPCError, StreamTerminatedError
from harness.daemons import Taskd, client
from harness.leaks import descriptors, leaving_nothing, traces
from harness.pace import SLOWER
from harness.real import need

from taskd import pidfd
from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest, TasksStub
from taskd.proto.containerd.v1.types import Status

CONTAINERS = int(os.environ.get("TASKD_SOAK_SURVIVORS", "12"))
AT_ONCE = max(8, CONTAINERS // 10)
"""In the long form, of each runtime a whole process's."""
TIMEOUT = (120 + CONTAINERS * 5) * SLOWER
LINES = 30
EACH = max(5, CONTAINERS // 16)
"""Containers that come to their end between two deaths of the daemon."""
pytestmark = pytest.mark.skipif(
    not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
)


@pytest.fixture
def seed() -> int:
    number = random.SystemRandom().randrange(2**32)
    print(f"random seed {number}")
    return number


@pytest.fixture(params=[1, 10], ids=["a shim each", "pools of ten"])
def surviving(folder: Path, request: pytest.FixtureRequest) -> Iterator[Taskd]:
    need("runc", "busybox")
    settings = f'[shims]\nadopt = true\npool = {request.param}\nidle = "0.5s"\n'
    with Taskd(folder / "taskd", "--log-level", "debug", settings=settings) as running:
        yield running
    # Shown if the test fails.
    print(running.log.read_text())


def shims(daemon: Taskd, namespace: str) -> list[int]:
    """Pids of the processes that serve: a process that waits to be started is none of them."""
    found = []
    for each in traces(daemon.state, daemon.root, namespace).processes:
        with suppress(OSError):
            if "anon_inode:[eventpoll]" in descriptors(pid := int(each.split()[0])):
                found.append(pid)
    return found


async def disturb(
    work: asyncio.Task[None],
    moments: random.Random,
    strike: Callable[[random.Random], Awaitable[None]],
) -> None:
    """Strike at random moments until the work is done."""
    while not work.done():
        await asyncio.wait([work], timeout=moments.uniform(0.05, 0.5))
        if not work.done():
            await strike(moments)
    await work


async def all_answer(daemon: Taskd, namespace: str) -> None:
    """Wait until every task is somebody's again."""
    async with asyncio.timeout(60):
        while True:
            with suppress(GRPCError, StreamTerminatedError, OSError):
                async with client(daemon.address, namespace) as channel:
                    found = await TasksStub(channel).list(ListTasksRequest())
                    if all(each.status != Status.UNKNOWN for each in found.tasks):
                        return
            await asyncio.sleep(0.02)


def check(daemon: Taskd, namespace: str, survivors: list[Survivor]) -> None:
    steps = told(daemon.root, namespace)
    for each in survivors:
        assert each.output.decode() == each.wanted.decode(), each.id
        # Who was told of an exit was told the right one.
        assert set(each.exits) == {each.status}, each.id
        # A Create that broke off may have made one that was undone, of which a shim tells in its
        # own order, and not all if it dies as well.
        undone = "(create (exit delete|delete exit|delete) )*" if each.broken_off else ""
        told_steps = "".join(f"{step} " for step in steps[each.id])
        assert re.fullmatch(f"{undone}create start exit delete ", told_steps), (each.id, told_steps)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("daemon_too", [False, True], ids=["shims", "the daemon too"])
async def test_shims_are_killed_again_and_again(
    surviving: Taskd, namespace: str, rootfs: Path, seed: int, daemon_too: bool
) -> None:
    daemon = surviving
    survivors = [
        Survivor(daemon, namespace, rootfs, number, (OCI, PROCESS)[number % 2], LINES)
        for number in range(CONTAINERS)
    ]
    kills = Counter[str]()

    async def strike(moments: random.Random) -> None:
        done = sum(bool(each.exits) for each in survivors)
        if daemon_too and done >= (kills["daemon"] + 1) * EACH:
            # What it keeps for shims that are dead at that moment is lost with it.
            await all_answer(daemon, namespace)
            await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)
            await all_answer(daemon, namespace)
            kills["daemon"] += 1
        elif found := await asyncio.to_thread(shims, daemon, namespace):
            with suppress(ProcessLookupError):
                os.kill(moments.choice(found), signal.SIGKILL)
                kills["shim"] += 1

    with leaving_nothing(daemon, namespace):
        living = asyncio.create_task(all_live(survivors, AT_ONCE))
        await disturb(living, random.Random(seed), strike)
    print(dict(kills), sum(each.broken_off for each in survivors))
    check(daemon, namespace, survivors)
    long = CONTAINERS >= 200
    assert kills["shim"] >= (30 if long else 1)
    assert kills["daemon"] >= (10 if long and daemon_too else 0)
