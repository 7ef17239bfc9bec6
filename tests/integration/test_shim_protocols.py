"""Shims of every form: how they answer `start`, which protocol and which task API they speak."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.fake_shim import install

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

FORMS = {
    "bare address": {"bare": True},
    "JSON, version 2": {"version": 2},
    "JSON, version 3": {"version": 3},
    "JSON, version 3, gRPC": {"version": 3, "protocol": "grpc"},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def shim(request: pytest.FixtureRequest, folder: Path) -> Path:
    return install(folder, **request.param)


async def start(tasks: TasksStub, containers: ContainersStub, shim: Path) -> int:
    container = Container(
        id="one", runtime=ContainerRuntime(name=str(shim)), spec=spec("/", ["nothing"])
    )
    await containers.create(CreateContainerRequest(container=container))
    created = await tasks.create(CreateTaskRequest(container_id="one"))
    assert (await tasks.start(StartRequest(container_id="one"))).pid == created.pid
    return created.pid


@pytest.mark.usefixtures("clean")
async def test_life_of_a_task(daemon: Taskd, namespace: str, shim: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        tasks = TasksStub(channel)
        pid = await start(tasks, ContainersStub(channel), shim)
        with pytest.raises(GRPCError) as caught:
            await tasks.list_pids(ListPidsRequest(container_id="one"))
        assert caught.value.status is Status.UNIMPLEMENTED
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                answer = await tasks.wait(WaitRequest(container_id="one"))
                assert (answer.exit_status, answer.exited_at.nanos) == (137, 2)

            group.start_soon(wait)
            await anyio.sleep(0.1)
            await tasks.kill(KillRequest(container_id="one", signal=9))
        found = await tasks.delete(DeleteTaskRequest(container_id="one"))
        assert (found.pid, found.exit_status) == (pid, 137)
    with anyio.fail_after(5):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await anyio.sleep(0.01)


@pytest.mark.usefixtures("clean")
async def test_a_restarted_daemon_finds_it(daemon: Taskd, namespace: str, shim: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        pid = await start(TasksStub(channel), ContainersStub(channel), shim)
    daemon.kill()
    daemon.start()
    async with client(daemon.address, namespace) as channel:
        tasks = TasksStub(channel)
        state = (await tasks.get(GetRequest(container_id="one"))).process
        assert state is not None
        assert (state.pid, state.status.name) == (pid, "RUNNING")
        await tasks.kill(KillRequest(container_id="one", signal=9))
        await tasks.delete(DeleteTaskRequest(container_id="one"))


@pytest.mark.usefixtures("clean")
async def test_its_death_is_noticed(daemon: Taskd, namespace: str, shim: Path) -> None:
    async with client(daemon.address, namespace) as channel:
        tasks = TasksStub(channel)
        pid = await start(tasks, ContainersStub(channel), shim)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(10):
            while True:
                try:
                    await tasks.get(GetRequest(container_id="one"))
                except GRPCError as exc:
                    if "task one not found" in (exc.message or ""):
                        break
                await anyio.sleep(0.05)
