"""docs/fleet.md: Docker Swarm on taskd on two machines, and what becomes of tasks when things end.

The machines are namespaces: see `harness.machines`. `make soak` has a larger fleet.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.documents import Command
from harness.fleets import PAGE, SECONDS, Reader, fleet_of, until_all_run
from harness.machines import Fleet, Machine
from harness.pace import SLOWER

DRAIN = next(n for n, step in enumerate(PAGE) if isinstance(step, Command) and "drain" in step.line)

pytestmark = [
    pytest.mark.skipif("TASKD_VM" in os.environ, reason="nothing can be fetched there"),
    pytest.mark.timeout(900),  # Prometheus may have to be fetched first
]


@pytest.fixture
def fleet(folder: Path, rootfs: Path) -> Iterator[Fleet]:
    with fleet_of(folder, rootfs, "one", "two") as machines:
        yield machines


def running(machine: Machine) -> dict[str, int]:
    """The containers on a machine, with their first processes' numbers there."""
    ids = machine.check("docker ps --quiet --no-trunc").split()
    inspect = "docker inspect --format '{{.Id}} {{.State.Pid}}' "
    told = machine.check(inspect + " ".join(ids)).splitlines() if ids else []
    return {each.split()[0]: int(each.split()[1]) for each in told}


def events(machine: Machine, where: str) -> list[dict[str, Any]]:
    """What is told there, of one node after another."""
    said = machine.check(f"taskd events --no-follow --json {where}")
    told = [json.loads(line) for line in said.splitlines()]
    told = [{"node": machine.name, **each} for each in told]
    return sorted(told, key=lambda each: each["node"])


def test_a_swarm_on_two_machines(fleet: Fleet) -> None:
    one, two = fleet.values()
    reader = Reader(fleet)
    reader.follow(*PAGE[:DRAIN])

    failed = "docker service ps web --no-trunc --format '{{.Error}}' | grep -c '(137)'"

    # taskd is killed, and a task meanwhile.
    before = running(two)
    stays, ends = before
    two.check(f"kill -KILL {reader.pids['two taskd']} && kill -0 {before[stays]} {before[ends]}")
    two.check(f"kill -KILL {before[ends]}")
    reader.type(two, "taskd serve")
    two.until(f"docker exec {stays} echo here", "here\n", seconds=SECONDS)
    one.until(failed, "1\n", seconds=SECONDS)
    until_all_run(fleet, one=2, two=2)
    assert running(two)[stays] == before[stays]
    assert len(running(two)) == 2

    # A task is killed.
    before = running(one)
    killed, other = before
    one.check(f"kill -KILL {before[killed]}")
    one.until(failed, "2\n", seconds=SECONDS)
    until_all_run(fleet, one=2, two=2)
    assert running(one)[other] == before[other]
    assert len(running(one)) == 2

    reader.follow(*PAGE[DRAIN:])

    # A machine is lost, and returns.
    two.kill()
    until_all_run(fleet, one=8)
    fleet.boot(two)
    reader.type(two, "taskd serve")
    reader.type(two, "dockerd")
    nodes = "docker node ls --format '{{.Hostname}} {{.Status}}' | sort"
    one.until(nodes, "one Ready\ntwo Ready\n", seconds=SECONDS)
    one.check("docker service scale --detach web=10")
    until_all_run(fleet, one=8, two=2)

    # NATS has heard of everything, once.
    deadline = time.monotonic() + SECONDS * SLOWER
    while (told := events(one, "--nats nats://192.168.1.1:4222")) != (
        happened := [each for machine in fleet.values() for each in events(machine, "--after 0")]
    ):
        assert time.monotonic() < deadline, (told, happened)
        time.sleep(0.5)
    exits = [each["event"] for each in told if each["topic"] == "/tasks/exit"]
    times = Counter((each["container_id"], each["id"]) for each in exits)
    assert set(times.values()) == {1}
    statuses = {each["id"]: each.get("exit_status", 0) for each in exits}
    assert (statuses[ends], statuses[killed]) == (137, 137)
