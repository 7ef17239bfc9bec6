"""Daemons and shims killed at random while short containers come and go."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.lifecycles import Fleet, told, whole
from harness.daemons import Taskd
from harness.leaks import leaving_nothing, traces

CONTAINERS = int(os.environ.get("TASKD_SOAK_CONTAINERS", "200"))
KILLS = CONTAINERS // 10


@pytest.fixture
def seed() -> int:
    number = random.SystemRandom().randrange(2**32)
    print(f"random seed {number}")
    return number


async def disturb(fleet: Fleet, seed: int, strike: Callable[[random.Random], bool]) -> int:
    """Strike at random moments until all containers are done; returns how often it hit."""
    moments = random.Random(seed)
    work = asyncio.create_task(fleet.run())
    hits = 0
    while not work.done():
        await asyncio.wait([work], timeout=moments.uniform(0.05, 1.0))
        if not work.done():
            hits += await asyncio.to_thread(strike, moments)
    await work
    return hits


@pytest.mark.timeout(600 + CONTAINERS * 3)
async def test_the_daemon_is_killed_again_and_again(
    daemon: Taskd, namespace: str, rootfs: Path, seed: int
) -> None:
    fleet = Fleet(daemon, namespace, rootfs, CONTAINERS)

    def strike(_: random.Random) -> bool:
        daemon.kill()
        daemon.start()
        return True

    with leaving_nothing(daemon, namespace):
        kills = await disturb(fleet, seed, strike)
        while kills < KILLS:
            strike(random.Random())
            kills += 1
    check(daemon, namespace, fleet)
    print(f"{kills} kills, {lives(daemon, namespace)}")


@pytest.mark.timeout(600 + CONTAINERS * 3)
async def test_shims_are_killed_again_and_again(
    daemon: Taskd, namespace: str, rootfs: Path, seed: int
) -> None:
    fleet = Fleet(daemon, namespace, rootfs, CONTAINERS)

    def strike(moments: random.Random) -> bool:
        shims = sorted(
            line
            for line in traces(daemon.state, daemon.root, namespace).processes
            if f"-namespace {namespace} " in line and " -id " in line
        )
        if not shims:
            return False
        try:
            os.kill(int(moments.choice(shims).split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    with leaving_nothing(daemon, namespace):
        kills = await disturb(fleet, seed, strike)
    check(daemon, namespace, fleet)
    assert kills, "no shim was hit"
    print(f"{kills} kills, {lives(daemon, namespace)}")


def check(daemon: Taskd, namespace: str, fleet: Fleet) -> None:
    assert fleet.done == set(fleet.ids)
    steps = told(daemon.root, namespace)
    assert set(steps) <= set(fleet.ids)
    assert {name: each for name, each in steps.items() if not whole(each)} == {}
    with sqlite3.connect(daemon.root / "events.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def lives(daemon: Taskd, namespace: str) -> Counter[str]:
    return Counter(" ".join(each) for each in told(daemon.root, namespace).values())
