"""Daemons and shims killed at random while short containers come and go."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.lifecycles import Fleet, steps, told, whole
from harness.daemons import Taskd
from harness.databases import copied
from harness.leaks import leaving_nothing, traces
from harness.nats import NatsServer, positions, settings, stored
from harness.real import BOTH_SHIMS, need

from taskd.proto.containerd.types import Envelope

pytestmark = BOTH_SHIMS

CONTAINERS = int(os.environ.get("TASKD_SOAK_CONTAINERS", "200"))
TIMEOUT = 600 + CONTAINERS * 3


@pytest.fixture
def fleet_size(runc_shim: None) -> int:
    """Fewer in CI with Python's shims, slow to start where the daemon is killed all the time."""
    short = Taskd.own_shim and "TASKD_SOAK_CONTAINERS" not in os.environ
    return CONTAINERS // 2 if short else CONTAINERS


@pytest.fixture
def seed() -> int:
    number = random.SystemRandom().randrange(2**32)
    print(f"random seed {number}")
    return number


async def disturb(fleet: Fleet, seed: int, strike: Callable[[random.Random], bool]) -> int:
    """Strike at random moments until all containers are done; returns how often it hit.

    Some containers are to get through between two strikes, or none, however slow the machine is.
    """
    moments = random.Random(seed)
    work = asyncio.create_task(fleet.run())
    hits = 0
    while not work.done():
        enough = len(fleet.done) + moments.randrange(6)
        while len(fleet.done) < enough and not work.done():
            await asyncio.sleep(0.01)
        await asyncio.wait([work], timeout=moments.uniform(0, 0.5))
        if not work.done():
            hits += await asyncio.to_thread(strike, moments)
    await work
    return hits


@pytest.fixture
def nats(folder: Path) -> Iterator[NatsServer]:
    need("nats-server")
    with NatsServer(folder / "nats") as running:
        yield running


@pytest.fixture
def publishing(folder: Path, nats: NatsServer, runc_shim: None) -> Iterator[Taskd]:
    """A taskd that publishes its events to `nats`."""
    need("containerd-shim-runc-v2", "runc")
    with Taskd(folder / "taskd", "--log-level", "debug", settings=settings(nats)) as running:
        yield running
    # Shown if the test fails.
    print(running.log.read_text())


@pytest.mark.timeout(TIMEOUT)
async def test_the_daemon_is_killed_again_and_again(
    publishing: Taskd,
    nats: NatsServer,
    namespace: str,
    rootfs: Path,
    fleet_size: int,
    seed: int,
) -> None:
    daemon = publishing
    fleet = Fleet(daemon, namespace, rootfs, fleet_size)

    def strike(_: random.Random) -> bool:
        daemon.kill()
        daemon.start()
        return True

    with leaving_nothing(daemon, namespace):
        kills = await disturb(fleet, seed, strike)
        while kills < fleet_size // 10:
            strike(random.Random())
            kills += 1
    check(daemon, namespace, fleet)
    await check_stream(nats, daemon, namespace)
    print(f"{kills} kills, {lives(daemon, namespace)}")


@pytest.mark.timeout(TIMEOUT)
async def test_shims_are_killed_again_and_again(
    daemon: Taskd, namespace: str, rootfs: Path, fleet_size: int, seed: int
) -> None:
    fleet = Fleet(daemon, namespace, rootfs, fleet_size)

    def strike(moments: random.Random) -> bool:
        shims = sorted(
            line
            for line in traces(daemon.state, daemon.root, namespace).processes
            if f"-namespace {namespace} " in line and (" -id " in line or " -group " in line)
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
    with copied(daemon.root / "events.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def check_stream(nats: NatsServer, daemon: Taskd, namespace: str) -> None:
    """A consumer has seen what the journal has: no more, no less, in the same order."""
    with copied(daemon.root / "events.db") as connection:
        [(newest,)] = connection.execute("SELECT max(position) FROM events")
    found: list[int] = []
    for _ in range(100):
        messages = await stored(nats)
        found = positions(messages)
        if newest in found:
            break
        await asyncio.sleep(0.1)
    assert found == list(range(1, newest + 1))
    envelopes = [Envelope.parse(message.data) for message in messages]
    seen = steps(
        (each.topic, each.event.value)
        for each in envelopes
        if each.namespace == namespace and each.event
    )
    assert seen == told(daemon.root, namespace)


def lives(daemon: Taskd, namespace: str) -> Counter[str]:
    return Counter(" ".join(each) for each in told(daemon.root, namespace).values())
