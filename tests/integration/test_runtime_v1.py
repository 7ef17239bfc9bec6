"""Runtime v1, ``io.containerd.runtime.v1.linux``, with the real ``containerd-shim``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import typing
from pathlib import Path

import anyio
import betterproto2
import pytest
from grpclib.client import Channel
from grpclib.exceptions import GRPCError
from harness.containers import hungry, process, spec
from harness.daemons import Containerd, Daemon, Taskd, client
from harness.pace import SLOWER
from harness.real import need

from taskd import cgroups
from taskd.cgroups import v2
from taskd.codec import encode
from taskd.proto.containerd.linux.runc import RuncOptions
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import EventsStub, SubscribeRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteProcessRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    ListTasksRequest,
    MetricsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.wellknown import from_any, unpack

pytestmark = pytest.mark.usefixtures("clean")

RUNTIME = "io.containerd.runtime.v1.linux"
UNIFIED = (v2.ROOT / "cgroup.controllers").exists()
"""With cgroup v2 alone containerd itself refuses all tasks of this runtime."""


@pytest.fixture(autouse=True)
def _parts() -> None:
    need("containerd-shim")


async def start(channel: Channel, rootfs: Path, *arguments: str, runtime: str = RUNTIME) -> int:
    container = Container(
        id="one", runtime=ContainerRuntime(name=runtime), spec=spec(rootfs, arguments)
    )
    await ContainersStub(channel).create(CreateContainerRequest(container=container))
    tasks = TasksStub(channel)
    created = await tasks.create(CreateTaskRequest(container_id="one"))
    assert (await tasks.start(StartRequest(container_id="one"))).pid == created.pid
    return created.pid


async def end(channel: Channel) -> int:
    tasks = TasksStub(channel)
    await tasks.kill(KillRequest(container_id="one", signal=9))
    status = (await tasks.wait(WaitRequest(container_id="one"))).exit_status
    await tasks.delete(DeleteTaskRequest(container_id="one"))
    await ContainersStub(channel).delete(DeleteContainerRequest(id="one"))
    return status


def measured(data: Any | None) -> typing.Any:
    """The message of either version of cgroups."""
    packed = from_any(data)
    assert packed is not None
    return unpack(packed)


async def test_life_of_a_task(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        tasks = TasksStub(channel)
        pid = await start(channel, rootfs, "/bin/sleep", "1000")
        listed = (await tasks.list(ListTasksRequest())).tasks
        assert [(found.id, found.pid, found.status.name) for found in listed] == [
            ("one", pid, "RUNNING")
        ]
        request = ExecProcessRequest(
            container_id="one", exec_id="two", spec=process(["/bin/sh", "-c", "exit 7"])
        )
        await tasks.exec(request)
        await tasks.start(StartRequest(container_id="one", exec_id="two"))
        waited = await tasks.wait(WaitRequest(container_id="one", exec_id="two"))
        assert waited.exit_status == 7
        request = DeleteProcessRequest(container_id="one", exec_id="two")
        assert (await tasks.delete_process(request)).exit_status == 7
        await tasks.pause(PauseTaskRequest(container_id="one"))
        state = (await tasks.get(GetRequest(container_id="one"))).process
        assert state is not None
        assert state.status.name == "PAUSED"
        await tasks.resume(ResumeTaskRequest(container_id="one"))
        pids = (await tasks.list_pids(ListPidsRequest(container_id="one"))).processes
        assert [found.pid for found in pids] == [pid]
        metrics = (await tasks.metrics(MetricsRequest())).metrics
        assert measured(metrics[0].data).pids.current == 1
        assert await end(channel) == 137


async def test_events(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        topics: set[str] = set()

        async def follow() -> None:
            async for envelope in EventsStub(channel).subscribe(SubscribeRequest()):
                topics.add(envelope.topic)

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.sleep(0.2)
            await start(channel, rootfs, "/bin/true")
            await TasksStub(channel).wait(WaitRequest(container_id="one"))
            await TasksStub(channel).delete(DeleteTaskRequest(container_id="one"))
            await ContainersStub(channel).delete(DeleteContainerRequest(id="one"))
            wanted = {f"/tasks/{what}" for what in ("create", "start", "exit", "delete")}
            with anyio.fail_after(10):
                while not wanted <= topics:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()


async def test_it_outlives_the_daemon(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        pid = await start(channel, rootfs, "/bin/sleep", "1000")
    daemon.kill()
    daemon.start()
    async with client(daemon.address, namespace) as channel:
        state = (await TasksStub(channel).get(GetRequest(container_id="one"))).process
        assert state is not None
        assert (state.pid, state.status.name) == (pid, "RUNNING")
        assert await end(channel) == 137


async def test_a_killed_shim_is_cleaned_up_after(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    async with client(daemon.address, namespace) as channel:
        await start(channel, rootfs, "/bin/sleep", "1000")
        bundle = daemon.state / RUNTIME / namespace / "one"
        os.kill(int((bundle / "shim.pid").read_text()), signal.SIGKILL)
        waited = await TasksStub(channel).wait(WaitRequest(container_id="one"), timeout=20 * SLOWER)
        assert waited.exit_status == 137
        with pytest.raises(GRPCError, match="task one not found"):
            await TasksStub(channel).get(GetRequest(container_id="one"))
        assert not bundle.exists()


def limits(message: betterproto2.Message, path: str = "") -> dict[str, int]:
    """What a message says of limits, by where it says so."""
    found = {}
    for name, value in vars(message).items():
        if isinstance(value, betterproto2.Message):
            found |= limits(value, f"{path}{name}.")
        elif name.endswith("limit"):
            found[f"{path}{name}"] = value
    return found


async def test_our_metrics_are_what_the_newer_shim_measures(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    async with client(daemon.address, namespace) as channel:
        pid = await start(channel, rootfs, "/bin/sleep", "1000", runtime="io.containerd.runc.v2")
        with anyio.fail_after(20):  # runc's own threads are there until it is the program
            while not Path(f"/proc/{pid}/comm").read_text().startswith("sleep"):
                await anyio.sleep(0.05)
        metrics = (await TasksStub(channel).metrics(MetricsRequest())).metrics
        theirs = measured(metrics[0].data)
        ours: typing.Any = cgroups.of(pid).stats()
        assert type(ours) is type(theirs)
        assert ours.pids == theirs.pids
        assert limits(ours) == limits(theirs)
        if UNIFIED:
            assert ours.memory.anon == pytest.approx(theirs.memory.anon, abs=1 << 20)
            assert ours.cpu.usage_usec == pytest.approx(theirs.cpu.usage_usec, abs=10**5)
        else:
            assert ours.memory_oom_control == theirs.memory_oom_control
            assert ours.memory.total_rss == pytest.approx(theirs.memory.total_rss, abs=1 << 20)
            assert len(ours.cpu.usage.per_cpu) == len(theirs.cpu.usage.per_cpu)
            assert ours.cpu.usage.total == pytest.approx(theirs.cpu.usage.total, abs=10**8)
        assert {name for name in ours.__dict__ if getattr(ours, name)} >= {
            name for name in theirs.__dict__ if getattr(theirs, name) and name != "network"
        }
        await end(channel)


async def test_out_of_memory(
    daemon: Taskd, containerd: Containerd, namespace: str, rootfs: Path
) -> None:
    """The shim does not tell; the daemon does, containerd's as ours, after a restart too."""
    for which in (daemon,) if UNIFIED else (containerd, daemon):
        topics: list[str] = []

        async def listen(topics: list[str] = topics, which: Daemon = which) -> None:
            async with client(which.address, namespace) as channel:
                wanted = SubscribeRequest(filters=[f"namespace=={namespace}"])
                async for envelope in EventsStub(channel).subscribe(wanted):
                    topics.append(envelope.topic)

        async with client(which.address, namespace) as channel:
            container = Container(
                id="one", runtime=ContainerRuntime(name=RUNTIME), spec=hungry(rootfs)
            )
            await ContainersStub(channel).create(CreateContainerRequest(container=container))
            tasks = TasksStub(channel)
            await tasks.create(CreateTaskRequest(container_id="one"))
        if which is daemon:
            daemon.kill()
            daemon.start()
        async with (
            client(which.address, namespace) as channel,
            anyio.create_task_group() as group,
        ):
            tasks = TasksStub(channel)
            group.start_soon(listen)
            await anyio.sleep(0.3)
            await tasks.start(StartRequest(container_id="one"))
            with anyio.fail_after(30):
                while "/tasks/oom" not in topics:
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        async with client(which.address, namespace) as channel:
            assert await end(channel) in (0, 137)


@pytest.mark.parametrize("binary", ["no-such-runc", "/no/such/runc"])
async def test_a_runtime_that_is_not_there(
    daemon: Taskd, containerd: Containerd, namespace: str, rootfs: Path, binary: str
) -> None:
    """It is told in containerd's words, and the id is free again."""
    told = set()
    for each in (daemon, containerd):
        async with client(each.address, namespace) as channel:
            options = Any(
                type_url="containerd.linux.runc.RuncOptions",
                value=encode(RuncOptions(runtime=binary)),
            )
            container = Container(
                id="one",
                runtime=ContainerRuntime(name=RUNTIME, options=options),
                spec=spec(rootfs, ["/bin/sleep", "1000"]),
            )
            await ContainersStub(channel).create(CreateContainerRequest(container=container))
            for _ in range(2):
                with pytest.raises(GRPCError) as caught:
                    await TasksStub(channel).create(CreateTaskRequest(container_id="one"))
                words = (caught.value.message or "").replace(str(each.folder), "FOLDER")
                told.add((caught.value.status, words))
            await ContainersStub(channel).delete(DeleteContainerRequest(id="one"))
    assert len(told) == 1, told


async def test_a_runtime_that_is_gone_when_its_shim_dies(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    """The rest is cleaned up, and the exit is told as one that nobody saw."""
    runc = folder / "runc"
    runc.symlink_to(str(shutil.which("runc")))
    options = Any(
        type_url="containerd.linux.runc.RuncOptions", value=encode(RuncOptions(runtime=str(runc)))
    )
    async with client(daemon.address, namespace) as channel:
        tasks = TasksStub(channel)
        container = Container(
            id="one",
            runtime=ContainerRuntime(name=RUNTIME, options=options),
            spec=spec(rootfs, ["/bin/sleep", "1000"]),
        )
        await ContainersStub(channel).create(CreateContainerRequest(container=container))
        pid = (await tasks.create(CreateTaskRequest(container_id="one"))).pid
        await tasks.start(StartRequest(container_id="one"))
        runc.unlink()
        (bundle,) = daemon.state.glob(f"{RUNTIME}/*/one")
        shim = int((bundle / "shim.pid").read_text())
        os.kill(shim, signal.SIGKILL)
        with anyio.fail_after(20):
            while bundle.exists():
                await anyio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)  # which runc would have done
        subprocess.run(
            ["runc", "--root", f"/run/containerd/runc/{namespace}", "delete", "--force", "one"],
            check=True,
        )
        runc.symlink_to(str(shutil.which("runc")))
        await tasks.create(CreateTaskRequest(container_id="one"))
        await tasks.delete(DeleteTaskRequest(container_id="one"))
