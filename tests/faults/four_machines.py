"""A hundred tasks of a swarm on four machines, of which one is lost: `make soak`.

It is not named as a test, so that it is run only where it is asked for.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from harness.documents import File
from harness.fleets import PAGE, Reader, fleet_of
from harness.machines import Fleet, Machine

TASKS = 100
SECONDS = 900

CREATE = f"docker service create --detach --name web --replicas {TASKS} --network host"
CREATE += " --no-resolve-image busybox sleep 100000"
RUNNING = (
    "docker service ps web --filter desired-state=running --format '{{.Node}} {{.CurrentState}}'"
)

# Of a machine's processes, by name: how many there are, and their PSS in MB.
MEMORY = """
for each in /proc/[0-9]*; do
    pss=$(sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' $each/smaps_rollup 2> /dev/null)
    [ "$pss" ] && echo "$(cut -c 1-15 $each/comm | tr ' ' _) $pss"
done | awk '{count[$1]++; sum[$1] += $2} END {for (n in count) print n, count[n], sum[n] / 1024}'
"""


def until_run(fleet: Fleet, machines: int) -> Counter[str]:
    """When all tasks run on so many machines: how many on which."""
    deadline = time.monotonic() + SECONDS
    while True:
        told = [line.split()[:2] for line in fleet["one"].check(RUNNING).splitlines()]
        where = Counter(node for node, state in told if state == "Running")
        if where.total() == len(told) == TASKS and len(where) == machines:
            return where
        assert time.monotonic() < deadline, told
        time.sleep(1)


def memory(machine: Machine) -> str:
    wanted = ("taskd", "dockerd", "containerd-shim")
    told = [line.split() for line in machine.check(MEMORY).splitlines()]
    return ", ".join(f"{n} {name}: {float(mb):.0f} MB" for name, n, mb in told if name in wanted)


@pytest.mark.timeout(3 * SECONDS)
def test_a_hundred_tasks_on_four_machines(folder: Path, rootfs: Path) -> None:
    with fleet_of(folder, rootfs, "one", "two", "three", "four") as fleet:
        one, two, _, four = fleet.values()
        reader = Reader(fleet)
        reader.follow(*(step for step in PAGE if isinstance(step, File)))
        reader.type(one, "nats-server")
        for machine in fleet.values():
            reader.type(machine, "taskd serve")
            reader.type(machine, "dockerd")
        for machine in fleet.values():
            reader.type(machine, "docker swarm join" if machine is not one else "docker swarm init")
            reader.type(machine, "tar")
        print("before:", memory(two))

        began = time.monotonic()
        one.check(CREATE)
        print(f"{until_run(fleet, 4)} after {time.monotonic() - began:.0f} s")
        print("with them:", memory(two))

        ids = set(two.check("docker ps --quiet").split())
        two.check(f"kill -KILL {reader.pids['two taskd']}")
        began = time.monotonic()
        reader.type(two, "taskd serve")
        each = " && ".join(f"docker exec {name} true" for name in ids)
        two.until(each, "", seconds=SECONDS)
        print(f"taskd back, and a command in each of its tasks: {time.monotonic() - began:.0f} s")
        assert set(two.check("docker ps --quiet").split()) == ids

        four.kill()
        began = time.monotonic()
        print(f"{until_run(fleet, 3)} {time.monotonic() - began:.0f} s after one was lost")
        print("with more:", memory(two))

        events = "taskd events --nats nats://192.168.1.1:4222 --no-follow --json"
        said = one.check(f"{events} 'topic==\"/tasks/start\"'")
        started = Counter(json.loads(line)["node"] for line in said.splitlines())
        print(f"starts in the stream: {started}")
        assert started.total() >= TASKS + 25
