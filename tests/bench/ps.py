"""`taskd ps` of a hundred tasks from the shell, beside `docker ps -a` of a hundred containers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping

import anyio
from bench.table import Sides, Table
from harness.docker import Dockerd

from taskd.client import connect

__all__ = ["hundred"]

_TASKS = 100
_DOCKER = f"""
tar -C "$ROOTFS" -c . | docker import - bench > /dev/null
for number in $(seq {_TASKS}); do docker create --network none bench sleep 1000 > /dev/null; done
"""


def hundred(sides: Sides, rounds: int = 20) -> Table:
    """Docker's are only created, and taskd's run: it asks their shims, and Docker nobody."""
    table = Table("a hundred: taskd ps, and docker ps -a in containerd's column", "ms")
    namespace = f"{sides.namespace}-ps"
    with Dockerd(sides.rootfs.parent / "d", sides.containerd.address, namespace) as dockerd:
        env = dockerd.environment() | {
            "ROOTFS": str(sides.rootfs),
            "TASKD_ADDRESS": str(sides.taskd.address),
            "CONTAINERD_NAMESPACE": namespace,
            # What is installed is compiled; what is in a checkout would be each time, or once.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(sides.rootfs.parent / "bytecode"),
        }
        subprocess.run(["/bin/sh", "-euc", _DOCKER], env=env, check=True, timeout=600)
        anyio.run(_run, sides, namespace)
        commands = {
            "taskd": [sys.executable, "-m", "taskd", "ps"],
            "containerd": ["docker", "ps", "-a"],
        }
        try:
            _cost(commands["taskd"], env)  # compiles
            for number in range(rounds):
                for side in list(commands)[:: 1 if number % 2 else -1]:
                    wall, cpu = _cost(commands[side], env)
                    table.add("time", side, wall)
                    table.add("CPU of the command", side, cpu)
        finally:
            anyio.run(_end, sides, namespace)
    return table


async def _run(sides: Sides, namespace: str) -> None:
    async with connect(sides.taskd.address, namespace) as client:
        for number in range(_TASKS):
            await client.run(
                sides.rootfs,
                ["/bin/sleep", "1000"],
                id=f"c{number}",
                runtime="io.taskd.process.v1",
                output="none",
            )


async def _end(sides: Sides, namespace: str) -> None:
    async with connect(sides.taskd.address, namespace) as client:
        for container in await client.list():
            await container.leave()


def _cost(command: list[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Milliseconds that a command takes, and that it has a processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=dict(os.environ) | dict(env), capture_output=True, text=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(done.stdout.splitlines()) == _TASKS + 1, done.stdout + done.stderr
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took * 1e3, cpu * 1e3
