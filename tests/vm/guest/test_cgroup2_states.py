"""Pausing, limits and the end of containers on cgroup v2, and systemd as the driver of cgroups."""

from __future__ import annotations

import json

import anyio
import pytest
from harness.client import RUNC, Client
from harness.containers import hungry, process, spec
from harness.real import BOTH_SHIMS
from vm.guest.tools import ROOT, cgroup, create, show

from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.containers.v1 import (
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import SubscribeRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    MetricsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.io.containerd.cgroups.v2 import Metrics

pytestmark = [pytest.mark.usefixtures("clean"), BOTH_SHIMS]

UNLIMITED = 2**64 - 1
RESOURCES = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


async def status(ask: Client) -> Status:
    state = (await ask.tasks.get(GetRequest(container_id="one"))).process
    assert state is not None
    return state.status


# --- pausing --------------------------------------------------------------------------------


async def test_sigkill_ends_a_paused_container(ask: Client) -> None:
    pid = await ask.start("one", "/bin/sleep", "1000")
    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    assert await status(ask) is Status.PAUSED
    assert "frozen 1" in (cgroup(pid) / "cgroup.events").read_text()
    await ask.tasks.kill(KillRequest(container_id="one", signal=9))
    with anyio.fail_after(20):
        assert (await ask.tasks.wait(WaitRequest(container_id="one"))).exit_status == 137
    assert await ask.remove("one") == 137


async def test_sigkill_ends_an_exec_of_a_paused_container(ask: Client) -> None:
    await ask.start("one", "/bin/sleep", "1000")
    sleeping = process(["/bin/sleep", "1000"])
    await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id="two", spec=sleeping))
    await ask.tasks.start(StartRequest(container_id="one", exec_id="two"))
    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    await ask.tasks.kill(KillRequest(container_id="one", exec_id="two", signal=9))
    with anyio.fail_after(20):
        waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
    assert waited.exit_status == 137
    assert await status(ask) is Status.PAUSED
    await ask.tasks.resume(ResumeTaskRequest(container_id="one"))
    assert await status(ask) is Status.RUNNING
    assert await ask.end("one") == 137


# --- runtimes and drivers -------------------------------------------------------------------

DRIVERS = {
    "runc": Options(),
    "runc-systemd": Options(systemd_cgroup=True),
    "crun": Options(binary_name="crun"),
    "crun-systemd": Options(binary_name="crun", systemd_cgroup=True),
}


@pytest.mark.parametrize("options", DRIVERS.values(), ids=DRIVERS)
async def test_a_life(ask: Client, options: Options, namespace: str) -> None:
    """With its limits, an exec, a pause, an update and an end that leaves nothing."""
    name = namespace.removeprefix("test-")
    document = json.loads(spec(ask.rootfs, ["/bin/sh", "-c", "sleep 1000 & wait"]).value)
    path = f"system.slice:taskd:{name}" if options.systemd_cgroup else f"/test-{name}"
    document["linux"]["cgroupsPath"] = path
    document["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 40}}
    await create(ask, "one", document, RUNC, options)
    pid = (await ask.tasks.create(CreateTaskRequest(container_id="one"))).pid
    folder = cgroup(pid)
    # crun makes one more below the scope that it gets from systemd, and limits it by itself.
    limited = folder.parent if folder.name == "container" else folder

    def value(file: str) -> set[str]:
        return {(each / file).read_text().strip() for each in (folder, limited)}

    if options.systemd_cgroup:
        assert limited == ROOT / f"system.slice/taskd-{name}.scope"
        assert show(limited.name, "ActiveState") == "active"
        if folder == limited:
            assert show(limited.name, "MemoryMax") == str(64 << 20)
    await ask.tasks.start(StartRequest(container_id="one"))
    assert str(64 << 20) in value("memory.max")

    command = process(["/bin/sh", "-c", "exit 7"])
    await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id="two", spec=command))
    await ask.tasks.start(StartRequest(container_id="one", exec_id="two"))
    waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
    assert waited.exit_status == 7

    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    assert any("frozen 1" in events for events in value("cgroup.events"))
    await ask.tasks.resume(ResumeTaskRequest(container_id="one"))
    found = (await ask.tasks.list_pids(ListPidsRequest(container_id="one"))).processes
    assert {str(each.pid) for each in found} == set((folder / "cgroup.procs").read_text().split())
    (metric,) = (await ask.tasks.metrics(MetricsRequest(filters=["id==one"]))).metrics
    assert metric.data is not None
    pids = Metrics.parse(metric.data.value).pids
    assert pids is not None
    limit = (folder / "pids.max").read_text().strip()
    assert (pids.current, pids.limit) == (2, UNLIMITED if limit == "max" else int(limit))
    assert "40" in value("pids.max")

    more = {"memory": {"limit": 80 << 20}, "pids": {"limit": 50}}
    resources = AnyMessage(type_url=RESOURCES, value=json.dumps(more).encode())
    await ask.tasks.update(UpdateTaskRequest(container_id="one", resources=resources))
    assert str(80 << 20) in value("memory.max")
    assert "50" in value("pids.max")
    if options.systemd_cgroup and folder == limited:
        assert show(limited.name, "MemoryMax") == str(80 << 20)

    assert await ask.end("one") == 137
    assert not limited.exists()
    if options.systemd_cgroup:
        assert show(limited.name, "LoadState") == "not-found"


@pytest.mark.parametrize("options", DRIVERS.values(), ids=DRIVERS)
async def test_memory_runs_out(ask: Client, options: Options, namespace: str) -> None:
    document = json.loads(hungry(ask.rootfs).value)
    if options.systemd_cgroup:
        document["linux"]["cgroupsPath"] = f"system.slice:taskd:{namespace}"
    told: list[str] = []

    async def listen() -> None:
        async for envelope in ask.events.subscribe(
            SubscribeRequest(filters=['topic=="/tasks/oom"'])
        ):
            told.append(envelope.topic)

    await create(ask, "one", document, RUNC, options)
    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await ask.tasks.create(CreateTaskRequest(container_id="one"))
        await ask.tasks.start(StartRequest(container_id="one"))
        with anyio.fail_after(30):
            while not told:
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    await ask.end("one")


async def test_a_missing_program_is_told_by_crun(ask: Client) -> None:
    document = json.loads(spec(ask.rootfs, ["/no/such"]).value)
    await create(ask, "one", document, RUNC, Options(binary_name="crun"))
    with pytest.raises(Exception, match="/no/such"):
        await ask.tasks.create(CreateTaskRequest(container_id="one"))
        await ask.tasks.start(StartRequest(container_id="one"))
    with pytest.raises(Exception, match="not found"):
        await ask.tasks.delete(DeleteTaskRequest(container_id="one"))
    await ask.containers.delete(DeleteContainerRequest(id="one"))
