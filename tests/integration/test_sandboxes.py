"""Sandboxes in taskd's own shim for runc, under containerd and under taskd."""

from __future__ import annotations

import os
import signal
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from grpclib import GRPCError, Status
from harness.client import Client
from harness.containers import spec
from harness.daemons import Containerd, Daemon, client
from harness.generations import GENERATIONS, Generation
from harness.leaks import leaving_nothing
from harness.real import need

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.sandbox import v1 as api
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    ListTasksRequest,
    StartRequest,
    WaitRequest,
)
from taskd.proto.containerd.types import Sandbox, SandboxRuntime

OWN = "io.taskd.oci.v1"
SHIM = "shim"
FOLDER = "io.containerd.sandbox.controller.v1.shim"


@pytest.fixture(params=[each for each in GENERATIONS if each.name == "2"], ids=str)
def containerd(request: pytest.FixtureRequest, folder: Path) -> Iterator[Containerd]:
    need("runc", "busybox")
    generation: Generation = request.param
    binaries = generation.binaries()
    path = [sysconfig.get_path("scripts"), *([str(binaries)] if binaries else [])]
    path = ":".join((*path, os.environ["PATH"]))
    with Containerd(folder / "c", path=path, cri=True) as running:
        yield running
    print(running.log.read_text())


class Sandboxed:
    """A client with a sandbox, and containers in it."""

    def __init__(self, daemon: Daemon, ask: Client, runtime: str = OWN) -> None:
        self.daemon = daemon
        self.ask = ask
        self.runtime = SandboxRuntime(name=runtime)
        self.store = api.StoreStub(ask.channel)
        self.controller = api.ControllerStub(ask.channel)

    async def create(self, name: str = "s") -> None:
        sandbox = Sandbox(sandbox_id=name, runtime=self.runtime, sandboxer=SHIM)
        sandbox.spec = spec(self.ask.rootfs, ["/bin/true"])
        await self.store.create(api.StoreCreateRequest(sandbox=sandbox))
        await self.controller.create(
            api.ControllerCreateRequest(sandbox_id=name, sandbox=sandbox, sandboxer=SHIM)
        )

    async def start(self, name: str = "s") -> int:
        message = api.ControllerStartRequest(sandbox_id=name, sandboxer=SHIM)
        return (await self.controller.start(message)).pid

    async def status(self, name: str = "s") -> api.ControllerStatusResponse:
        message = api.ControllerStatusRequest(sandbox_id=name, sandboxer=SHIM)
        return await self.controller.status(message)

    async def wait(self, name: str = "s") -> api.ControllerWaitResponse:
        message = api.ControllerWaitRequest(sandbox_id=name, sandboxer=SHIM)
        return await self.controller.wait(message)

    async def stop(self, name: str = "s") -> None:
        message = api.ControllerStopRequest(sandbox_id=name, sandboxer=SHIM, timeout_secs=10)
        await self.controller.stop(message)

    async def shutdown(self, name: str = "s") -> None:
        message = api.ControllerShutdownRequest(sandbox_id=name, sandboxer=SHIM)
        await self.controller.shutdown(message)
        await self.store.delete(api.StoreDeleteRequest(sandbox_id=name))

    async def run(self, name: str, sandbox: str = "s", command: str = "sleep 1000") -> int:
        container = Container(
            id=name,
            runtime=ContainerRuntime(name=self.runtime.name),
            spec=spec(self.ask.rootfs, ["/bin/sh", "-c", command]),
            sandbox=sandbox,
        )
        await self.ask.containers.create(CreateContainerRequest(container=container))
        await self.ask.tasks.create(CreateTaskRequest(container_id=name))
        return (await self.ask.tasks.start(StartRequest(container_id=name))).pid

    async def end(self, name: str) -> int:
        await self.ask.tasks.kill(KillRequest(container_id=name, signal=9))
        await self.ask.tasks.wait(WaitRequest(container_id=name))
        return await self.delete(name)

    async def delete(self, name: str) -> int:
        status = (await self.ask.tasks.delete(DeleteTaskRequest(container_id=name))).exit_status
        await self.ask.containers.delete(DeleteContainerRequest(id=name))
        return status

    async def tasks(self) -> list[str]:
        return sorted(t.id for t in (await self.ask.tasks.list(ListTasksRequest())).tasks)

    def bundle(self, name: str = "s", folder: str = FOLDER) -> Path:
        return self.daemon.state / folder / self.namespace / name

    namespace = ""


@asynccontextmanager
async def sandboxed(daemon: Daemon, namespace: str, rootfs: Path) -> AsyncIterator[Sandboxed]:
    with leaving_nothing(daemon, namespace):
        async with client(daemon.address, namespace) as channel:
            made = Sandboxed(daemon, Client(channel, rootfs))
            made.namespace = namespace
            with anyio.fail_after(60):
                yield made


async def gone(pid: int) -> None:
    with anyio.fail_after(10):
        while Path("/proc", str(pid)).exists():
            await anyio.sleep(0.02)


async def test_a_life(containerd: Daemon, namespace: str, rootfs: Path) -> None:
    async with sandboxed(containerd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        status = await s.status()
        assert (status.sandbox_id, status.pid, status.state) == ("s", shim, "SANDBOX_READY")
        platform = api.ControllerPlatformRequest(sandbox_id="s", sandboxer=SHIM)
        with pytest.raises(GRPCError) as refused:
            await s.controller.platform(platform)
        assert refused.value.status is Status.UNIMPLEMENTED
        one, two = await s.run("one"), await s.run("two")
        assert await s.tasks() == ["one", "two"]
        # Both are in the sandbox's process, which goes on without either.
        for pid in (one, two):
            stat = Path("/proc", str(pid), "stat").read_text()
            assert int(stat.rpartition(")")[2].split()[1]) == shim
        assert await s.end("one") == 137
        assert await s.end("two") == 137
        assert (await s.status()).state == "SANDBOX_READY"
        waited: list[api.ControllerWaitResponse] = []

        async def wait() -> None:
            waited.append(await s.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(0.1)
            assert not waited
            await s.stop()
        assert waited[0].exit_status == 0
        assert (await s.status()).state == "SANDBOX_NOTREADY"
        await s.stop()
        await s.shutdown()
        await gone(shim)
        assert not s.bundle().exists()


async def test_stop_ends_the_containers(containerd: Daemon, namespace: str, rootfs: Path) -> None:
    async with sandboxed(containerd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        pid = await s.run("one")
        await s.stop()
        await gone(pid)
        assert (await s.status()).state == "SANDBOX_NOTREADY"
        with pytest.raises(GRPCError, match="sandbox s has stopped") as refused:
            await s.run("two")
        assert refused.value.status is Status.FAILED_PRECONDITION
        await s.ask.containers.delete(DeleteContainerRequest(id="two"))
        assert await s.delete("one") == 137
        await s.shutdown()
        await gone(shim)


async def test_the_shim_is_killed(containerd: Daemon, namespace: str, rootfs: Path) -> None:
    """containerd calls no more than the sandbox's own ``delete``: it ends the containers, too."""
    async with sandboxed(containerd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        pids = [await s.run(name) for name in ("one", "two")]
        os.kill(shim, signal.SIGKILL)
        for pid in pids:
            await gone(pid)
        with anyio.fail_after(10):
            while s.bundle().exists():
                await anyio.sleep(0.05)
        for name in ("one", "two"):
            with pytest.raises(GRPCError, match="ttrpc: closed"):
                await s.ask.tasks.delete(DeleteTaskRequest(container_id=name))
