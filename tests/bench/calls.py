"""``Tasks.Get`` of a running task: latency of one call at a time, and throughput (h2load)."""

from __future__ import annotations

import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from bench.lifecycle import RUNTIME
from bench.table import Sides, Table
from grpclib.client import Channel
from harness.containers import spec
from harness.daemons import Daemon, client

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

__all__ = ["get", "h2load", "start", "stop"]

NAME = "get"


async def get(sides: Sides, rounds: int = 5) -> Table:
    table = Table("Tasks.Get", "µs; calls/s, more is better")
    for _, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            await start(channel, sides.rootfs)
    for side, daemon, namespace in sides.alternate(rounds):
        async with client(daemon.address, namespace) as channel:
            latencies = await _from_python(channel, 500)
            table.add("p50, grpclib client", side, statistics.median(latencies))
    for side, daemon, namespace in sides.alternate(rounds):
        latencies = h2load(daemon, namespace, connections=1, streams=1, count=2000)
        table.add("p50, h2load", side, statistics.median(latencies))
        table.add("p99, h2load", side, statistics.quantiles(latencies, n=100)[98])
    for side, daemon, namespace in sides.alternate(rounds):
        table.add("rate, h2load 4 x 8 streams", side, _rate(daemon, namespace))
    for _, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            await stop(channel)
    return table


async def start(channel: Channel, rootfs: Path) -> None:
    container = Container(
        id=NAME, runtime=ContainerRuntime(name=RUNTIME), spec=spec(rootfs, ["/bin/sleep", "1000"])
    )
    await ContainersStub(channel).create(CreateContainerRequest(container=container))
    await TasksStub(channel).create(CreateTaskRequest(container_id=NAME))
    await TasksStub(channel).start(StartRequest(container_id=NAME))


async def stop(channel: Channel) -> None:
    await TasksStub(channel).kill(KillRequest(container_id=NAME, signal=9))
    await TasksStub(channel).wait(WaitRequest(container_id=NAME))
    await TasksStub(channel).delete(DeleteTaskRequest(container_id=NAME))
    await ContainersStub(channel).delete(DeleteContainerRequest(id=NAME))


async def _from_python(channel: Channel, count: int) -> list[float]:
    """Microseconds of each of `count` calls, as a Python client sees them."""
    tasks = TasksStub(channel)
    latencies = []
    for number in range(count + 10):
        begin = time.perf_counter()
        await tasks.get(GetRequest(container_id=NAME))
        if number >= 10:
            latencies.append((time.perf_counter() - begin) * 1e6)
    return latencies


def _command(daemon: Daemon, namespace: str, body: Path) -> list[str]:
    message = bytes(GetRequest(container_id=NAME))
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return [
        *("h2load", "-d", str(body), "-H", "content-type: application/grpc"),
        *("-H", "te: trailers", "-H", f"containerd-namespace: {namespace}"),
        *("-B", f"unix:{daemon.address}"),
        "http://localhost/containerd.services.tasks.v1.Tasks/Get",
    ]


def h2load(
    daemon: Daemon, namespace: str, *, connections: int, streams: int, count: int
) -> list[float]:
    """Microseconds of each of `count` calls."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = _command(daemon, namespace, Path(folder, "body"))
        command[1:1] = [f"-c{connections}", f"-m{streams}", f"-n{count}", f"--log-file={log}"]
        subprocess.run(command, check=True, capture_output=True)
        lines = [line.split("\t") for line in log.read_text().splitlines()]
        assert len(lines) == count
        assert all(status == "200" for _, status, _ in lines)
        return [float(duration) for _, _, duration in lines]


def _rate(daemon: Daemon, namespace: str, count: int = 8000) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = _command(daemon, namespace, Path(folder, "body"))
        command[1:1] = ["-c4", "-m8", f"-n{count}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finished = next(line for line in done.stdout.splitlines() if line.startswith("finished in"))
    return float(finished.split()[3])
