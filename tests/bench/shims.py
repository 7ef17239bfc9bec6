"""taskd with its own shim beside containerd with the Go shim; below both, the same runc or crun."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import anyio
from bench import fleet, lifecycle
from bench.table import Sides, Table
from grpclib.client import Channel
from harness.containers import process, spec
from harness.daemons import Taskd, client

from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteProcessRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any

__all__ = [
    "crun",
    "execs",
    "host_process",
    "hundred",
    "memory",
    "runc",
    "shared_memory",
    "throughput",
]

RUNTIMES = lifecycle.RUNTIMES | {"taskd": "io.taskd.oci.v1"}
"""What was before has the Go shim: the names of our own have changed."""
PROCESS = "io.taskd.process.v1"
SETTINGS = '[shims]\nidle = "60s"\n'
"""The default, which is not that of tests."""
CONTAINERS = 20
SHARING = 100
BYTES = 1 << 30


async def runc(sides: Sides) -> list[Table]:
    return await _lifecycles(sides, "runc")


async def crun(sides: Sides) -> list[Table]:
    return await _lifecycles(sides, "crun")


async def _lifecycles(sides: Sides, binary: str) -> list[Table]:
    options = Any(type_url="containerd.runc.v1.Options", value=bytes(Options(binary_name=binary)))
    named = f"own shim, {binary}: lifecycle"
    return [
        await lifecycle.one_client(sides, 40, f"{named}, one client", RUNTIMES, options),
        await lifecycle.four_clients(sides, 5, 5, f"{named}, four clients", RUNTIMES, options),
    ]


async def host_process(sides: Sides) -> Table:
    """A plain process of the host by taskd's shim, beside a container of runc's by containerd's."""
    title = "a process of the host, beside containerd's container: lifecycle, one client"
    return await lifecycle.one_client(sides, 40, title, RUNTIMES | {"taskd": PROCESS})


async def execs(sides: Sides, rounds: int = 30) -> Table:
    table = Table("own shim, runc: exec, start, wait, delete", "ms")
    for side, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            await _begin(channel, "execs", sides.rootfs, ["/bin/sleep", "1000"], RUNTIMES[side])
    for number, (side, daemon, namespace) in enumerate(sides.alternate(rounds)):
        async with client(daemon.address, namespace) as channel:
            tasks = TasksStub(channel)
            await tasks.get(GetRequest(container_id="execs"))  # connects
            of = {"container_id": "execs", "exec_id": f"e{number}"}
            began = time.perf_counter()
            await tasks.exec(ExecProcessRequest(**of, spec=process(["/bin/true"])))
            await tasks.start(StartRequest(**of))
            await tasks.wait(WaitRequest(**of))
            await tasks.delete_process(DeleteProcessRequest(**of))
            table.add("total", side, (time.perf_counter() - began) * 1e3)
    for _, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            await _end(channel, "execs")
    return table


async def memory(sides: Sides) -> Table:
    """Proportional set size of what runs for each container beside the container itself."""
    table = Table(f"own shim: memory of each of {CONTAINERS} running containers", "MB")
    await _weigh(sides, table, CONTAINERS)
    return table


async def hundred(sides: Sides) -> Table:
    title = f"own shim, runc: {fleet.TASKS} tasks"
    return await fleet.hundred(sides, title=title, runtimes=RUNTIMES)


async def shared_memory(sides: Sides) -> Table:
    """The same with one process for all; on a daemon of its own, whose setting it is."""
    table = Table(f"own shim, shared: memory of each of {SHARING} running containers", "MB")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        settings = f"{SETTINGS}shared = true\n"
        with Taskd(Path(folder, "t"), "--log-level", "warn", settings=settings) as taskd:
            both = Sides(sides.containerd, taskd, sides.rootfs, sides.namespace)
            await _weigh(both, table, SHARING)
    return table


async def _weigh(sides: Sides, table: Table, containers: int) -> None:
    for side, daemon, namespace in sides.alternate(1):
        names = [f"memory-{number}" for number in range(containers)]
        async with client(daemon.address, namespace) as channel:
            for name in names:
                await _begin(channel, name, sides.rootfs, ["/bin/sleep", "1000"], RUNTIMES[side])
            await anyio.sleep(1)
            weight = sum(_pss(pid) for pid in _shims(namespace))
            table.add("PSS", side, weight / containers / 1e6)
            for name in names:
                await _end(channel, name)


def _shims(namespace: str) -> list[int]:
    """Shims say their namespace in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ").split()
        except OSError:
            continue
        if b"-namespace" in arguments and namespace.encode() in arguments:
            found.append(int(folder.name))
    return found


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def throughput(sides: Sides, rounds: int = 3) -> Table:
    table = Table("own shim: 1 GiB to the FIFO of standard output", "MB/s, more is better")
    script = f"exec dd if=/dev/zero bs=64k count={BYTES // 65536} 2>/dev/null"
    command = ["/bin/sh", "-c", script]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number, (side, daemon, namespace) in enumerate(sides.alternate(rounds)):
            fifo, name = Path(folder, f"out-{number}"), f"flow-{number}"
            os.mkfifo(fifo)
            async with client(daemon.address, namespace) as channel:
                reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
                os.set_blocking(reader, True)
                await _make(channel, name, sides.rootfs, command, RUNTIMES[side], str(fifo))
                began = time.perf_counter()
                await TasksStub(channel).start(StartRequest(container_id=name))
                read = await anyio.to_thread.run_sync(_drain, reader)
                table.add("rate", side, read / (time.perf_counter() - began) / 1e6)
                assert read == BYTES
                await TasksStub(channel).wait(WaitRequest(container_id=name))
                await TasksStub(channel).delete(DeleteTaskRequest(container_id=name))
                await ContainersStub(channel).delete(DeleteContainerRequest(id=name))
    return table


def _drain(reader: int) -> int:
    read = 0
    while data := os.read(reader, 1 << 20):
        read += len(data)
    os.close(reader)
    return read


async def _make(
    channel: Channel, name: str, rootfs: Path, command: list[str], runtime: str, stdout: str = ""
) -> None:
    container = Container(
        id=name, runtime=ContainerRuntime(name=runtime), spec=spec(rootfs, command)
    )
    await ContainersStub(channel).create(CreateContainerRequest(container=container))
    await TasksStub(channel).create(
        CreateTaskRequest(container_id=name, stdout=stdout, stderr=stdout)
    )


async def _begin(
    channel: Channel, name: str, rootfs: Path, command: list[str], runtime: str
) -> None:
    await _make(channel, name, rootfs, command, runtime)
    await TasksStub(channel).start(StartRequest(container_id=name))


async def _end(channel: Channel, name: str) -> None:
    tasks = TasksStub(channel)
    await tasks.kill(KillRequest(container_id=name, signal=9))
    await tasks.wait(WaitRequest(container_id=name))
    await tasks.delete(DeleteTaskRequest(container_id=name))
    await ContainersStub(channel).delete(DeleteContainerRequest(id=name))
