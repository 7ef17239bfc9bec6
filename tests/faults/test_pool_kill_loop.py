"""The daemon, and processes that hold many containers, killed while short ones come and go."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from faults.lifecycles import Fleet, told, whole
from harness.daemons import Taskd
from harness.leaks import leaving_nothing, traces
from harness.real import need

CONTAINERS = int(os.environ.get("TASKD_SOAK_CONTAINERS", "200")) // 4
SETTINGS = """
[shims]
adopt = false
pool = 4
idle = "0.5s"

[runtimes]
"io.containerd.runc.v2" = "io.taskd.oci.v1"
"""


def kill_a_process(daemon: Taskd, namespace: str, moments: random.Random) -> bool:
    found = traces(daemon.state, daemon.root, namespace).processes
    served = sorted(int(each.split()[0]) for each in found if " -group pool-" in each)
    if not served:
        return False
    try:
        os.kill(moments.choice(served), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(600 + CONTAINERS * 6)
async def test_a_pool_is_killed_again_and_again(folder: Path, namespace: str, rootfs: Path) -> None:
    need("runc", "busybox")
    seed = random.SystemRandom().randrange(2**32)
    print(f"random seed {seed}")
    moments = random.Random(seed)
    kills = 0
    with Taskd(folder / "taskd", "--log-level", "debug", settings=SETTINGS) as daemon:
        fleet = Fleet(daemon, namespace, rootfs, CONTAINERS)
        with leaving_nothing(daemon, namespace):
            work = asyncio.create_task(fleet.run())
            while not work.done():
                # Some get through between two kills, however slow the machine is.
                enough = len(fleet.done) + moments.randrange(2, 8)
                while len(fleet.done) < enough and not work.done():
                    await asyncio.sleep(0.01)
                if moments.random() < 0.4:
                    daemon.kill()
                    daemon.start()
                    kills += 1
                else:
                    kills += kill_a_process(daemon, namespace, moments)
            await work
        assert fleet.done == set(fleet.ids)
        steps = told(daemon.root, namespace)
        assert {name: each for name, each in steps.items() if not whole(each)} == {}
        assert kills
        print(f"{kills} kills")
        print(daemon.log.read_text())
