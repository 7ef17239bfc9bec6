"""Sandboxes in taskd's own shim for runc, under containerd and under taskd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from grpclib import GRPCError, Status
from harness.client import Client
from harness.containers import spec
from harness.daemons import Containerd, Daemon, Taskd, client
from harness.generations import GENERATIONS, Generation
from harness.leaks import leaving_nothing
from harness.real import MORTAL, need

from taskd import pidfd
from taskd.client import connect
from taskd.errors import NotFound, TaskdError
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
from taskd.proto.taskd.v1 import RenewShimsRequest, ShimsStub

OWN = "io.taskd.oci.v1"
SLEEP = ("/bin/sleep", "1000")
SHIM = "shim"
FOLDER = "io.containerd.sandbox.controller.v1.shim"


@pytest.fixture
def taskd(folder: Path, namespace: str, settings: str) -> Iterator[Taskd]:
    need("runc", "busybox")
    binaries = GENERATIONS[1].binaries()
    path = f"{binaries}:{os.environ['PATH']}" if binaries else ""
    with Taskd(folder / "t", path=path, settings=settings) as running:
        try:
            with leaving_nothing(running, namespace):
                yield running
        finally:
            print(running.log.read_text())


@pytest.fixture(params=[*(each for each in GENERATIONS if each.name == "2"), None], ids=str)
def daemon(request: pytest.FixtureRequest, folder: Path, namespace: str) -> Iterator[Daemon]:
    """containerd 2.x, or taskd."""
    if request.param is None:
        yield request.getfixturevalue("taskd")
        return
    need("runc", "busybox")
    generation: Generation = request.param
    binaries = generation.binaries()
    folders = [sysconfig.get_path("scripts"), *([str(binaries)] if binaries else [])]
    path = ":".join((*folders, os.environ["PATH"]))
    with (
        Containerd(folder / "c", path=path, cri=True) as running,
        leaving_nothing(running, namespace),
    ):
        yield running
    print(running.log.read_text())


class Sandboxed:
    """A client with a sandbox, and containers in it."""

    def __init__(self, daemon: Daemon, ask: Client, namespace: str, runtime: str) -> None:
        self.daemon = daemon
        self.ask = ask
        self.namespace = namespace
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


@asynccontextmanager
async def sandboxed(
    daemon: Daemon, namespace: str, rootfs: Path, runtime: str = OWN
) -> AsyncIterator[Sandboxed]:
    async with client(daemon.address, namespace) as channel:
        made = Sandboxed(daemon, Client(channel, rootfs), namespace, runtime)
        with anyio.fail_after(60):
            yield made


async def gone(pid: int) -> None:
    with anyio.fail_after(10):
        while Path("/proc", str(pid)).exists():
            await anyio.sleep(0.02)


async def test_a_life(daemon: Daemon, namespace: str, rootfs: Path) -> None:
    async with sandboxed(daemon, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        status = await s.status()
        assert (status.sandbox_id, status.pid, status.state) == ("s", shim, "SANDBOX_READY")
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


async def test_stop_ends_the_containers(daemon: Daemon, namespace: str, rootfs: Path) -> None:
    async with sandboxed(daemon, namespace, rootfs) as s:
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


@MORTAL
async def test_the_shim_is_killed(daemon: Daemon, namespace: str, rootfs: Path) -> None:
    """containerd calls no more than the sandbox's own ``delete``: it ends the containers, too.

    taskd tells of their ends.
    """
    async with sandboxed(daemon, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        pids = [await s.run(name) for name in ("one", "two")]
        os.kill(shim, signal.SIGKILL)
        for pid in pids:
            await gone(pid)
        with anyio.fail_after(10):
            while s.bundle().exists():
                await anyio.sleep(0.05)
        for name in ("one", "two") if isinstance(daemon, Containerd) else ():
            with pytest.raises(GRPCError, match="ttrpc: closed"):
                await s.ask.tasks.delete(DeleteTaskRequest(container_id=name))
        assert await s.tasks() == []
        assert (await s.status()).state == ""
        await s.stop()
        with pytest.raises(GRPCError) as refused:
            await s.shutdown()
        assert refused.value.status is Status.NOT_FOUND


async def test_taskd_is_restarted(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    """Killed, so that it can write nothing down: sandboxes and tasks in them are found again."""
    async with sandboxed(taskd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        await s.run("one")
    taskd.kill()
    taskd.start()
    async with sandboxed(taskd, namespace, rootfs) as s:
        assert await s.tasks() == ["one"]
        with anyio.fail_after(10):
            while (await s.status()).state != "SANDBOX_READY":
                await anyio.sleep(0.05)
        # In the process that there is.
        pid = await s.run("two")
        stat = Path("/proc", str(pid), "stat").read_text()
        assert int(stat.rpartition(")")[2].split()[1]) == shim
        assert await s.end("one") == 137
        assert await s.end("two") == 137
        assert (await s.status()).pid == shim
        await s.stop()
        await s.shutdown()
        await gone(shim)


@MORTAL
async def test_the_shim_dies_while_taskd_is_away(
    taskd: Taskd, namespace: str, rootfs: Path
) -> None:
    async with sandboxed(taskd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        pid = await s.run("one")
    taskd.kill()
    os.kill(shim, signal.SIGKILL)
    taskd.start()
    async with sandboxed(taskd, namespace, rootfs) as s:
        await gone(pid)
        with anyio.fail_after(10):
            while s.bundle().exists():
                await anyio.sleep(0.05)
        assert await s.tasks() == []
        assert (await s.status()).state == ""
        # It can be made anew.
        await s.store.delete(api.StoreDeleteRequest(sandbox_id="s"))
        await s.ask.containers.delete(DeleteContainerRequest(id="one"))
        await s.create()
        await s.start()
        await s.shutdown()


@MORTAL
async def test_a_shim_that_hangs(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    """Its own calls wait as long as their clients do; another sandbox has nothing of it."""
    async with sandboxed(taskd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        os.kill(shim, signal.SIGSTOP)
        message = api.ControllerStatusRequest(sandbox_id="s", sandboxer=SHIM)
        with pytest.raises((GRPCError, TimeoutError)):
            await s.controller.status(message, timeout=0.5)
        await s.create("other")
        other = await s.start("other")
        await s.stop("other")
        await s.shutdown("other")
        await gone(other)
        os.kill(shim, signal.SIGKILL)
        with anyio.fail_after(10):
            while (await s.status()).state:
                await anyio.sleep(0.05)


@MORTAL
async def test_waiting_for_one_whose_shim_is_killed(
    taskd: Taskd, namespace: str, rootfs: Path
) -> None:
    async with sandboxed(taskd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        answers: list[api.ControllerWaitResponse] = []

        async def wait() -> None:
            answers.append(await s.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(0.2)
            os.kill(shim, signal.SIGKILL)
        assert answers[0].exit_status == 137


async def test_shutdown_ends_what_is_in_it(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    async with sandboxed(taskd, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        pid = await s.run("one")
        await s.shutdown()
        await gone(pid)
        await gone(shim)
        with anyio.fail_after(10):
            while await s.tasks():
                await anyio.sleep(0.05)


async def test_a_shim_without_sandboxes(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    """Nothing is left of the attempt."""
    need("containerd-shim-runc-v2")
    runtime = shutil.which("containerd-shim-runc-v2")
    async with sandboxed(taskd, namespace, rootfs, runtime or "") as s:
        with pytest.raises(GRPCError, match="failed to create sandbox s: ") as refused:
            await s.create()
        assert refused.value.status is Status.UNIMPLEMENTED
        assert not s.bundle().exists()


@pytest.mark.parametrize("generation", GENERATIONS[1:], ids=str)
async def test_ctr(taskd: Taskd, namespace: str, rootfs: Path, generation: Generation) -> None:
    """The client of 1.7 knows no controllers' names, that of 2.1 gives none; neither creates."""
    ctr = [f"{generation.binaries()}/ctr", "-a", str(taskd.address), "-n", namespace]
    pod = taskd.folder / "pod.json"
    pod.write_bytes(spec(rootfs, ["/bin/true"]).value)

    def run(*arguments: str) -> str:
        done = subprocess.run([*ctr, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    async with sandboxed(taskd, namespace, rootfs) as s:
        assert run("sandboxes", "run", "--runtime", OWN, str(pod), "s").strip() == "s"
        assert (await s.status()).state == "SANDBOX_READY"
        run("run", "-d", "--runtime", OWN, "--sandbox", "s", "--rootfs", str(rootfs), "one", *SLEEP)
        assert await s.tasks() == ["one"]
        assert await s.end("one") == 137
        assert "deleted: s" in run("sandboxes", "rm", "s")
        assert run("sandboxes", "ls").split() == ["ID", "CREATED", "RUNTIME"]
        assert (await s.status()).state == ""


async def test_with_the_client_library(daemon: Daemon, namespace: str, rootfs: Path) -> None:
    async with connect(daemon.address, namespace) as library:
        async with library.sandboxes.create("s", OWN, labels={"a": "b"}) as sandbox:
            assert [each.id for each in await library.sandboxes.list()] == ["s"]
            assert (await sandbox.status()).state == "SANDBOX_READY"
            how = {"runtime": OWN, "sandbox": "s"}
            async with library.run(rootfs, ["/bin/echo", "hello"], **how) as container:
                assert await container.stdout.text() == "hello\n"
            await (await library.sandboxes.get("s")).stop()
            assert (await sandbox.wait()).at > 0
        with pytest.raises(NotFound, match='"s"'):
            await library.sandboxes.get("s")
        with pytest.raises(TaskdError, match='sandbox "t"|no.such'):
            await library.sandboxes.create("t", "no.such.v7")
        assert await library.sandboxes.list() == []


@pytest.fixture
def surviving(folder: Path, namespace: str) -> Iterator[Taskd]:
    """A taskd whose containers survive their shims."""
    need("runc", "busybox")
    with Taskd(folder / "t", "--log-level", "debug") as running:
        try:
            with leaving_nothing(running, namespace):
                yield running
        finally:
            print(running.log.read_text())


@pytest.mark.skipif(
    not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
)
@pytest.mark.parametrize("how", ["killed", "renewed", "killed without a daemon"])
async def test_it_survives_its_shim(
    surviving: Taskd, namespace: str, rootfs: Path, how: str
) -> None:
    """With all that is in it."""
    async with sandboxed(surviving, namespace, rootfs) as s:
        await s.create()
        shim = await s.start()
        script = "trap 'exit 7' TERM; while :; do sleep 0.05; done"
        pids = {name: await s.run(name, command=script) for name in ("one", "two")}
        before = await s.status()
        waited: list[api.ControllerWaitResponse] = []

        async def wait() -> None:
            waited.append(await s.wait())

        async with anyio.create_task_group() as group:
            match how:
                case "killed":
                    group.start_soon(wait)
                    await anyio.sleep(0.1)
                    os.kill(shim, signal.SIGKILL)
                case "renewed":
                    group.start_soon(wait)
                    shims = ShimsStub(s.ask.channel)
                    answers = [each async for each in shims.renew(RenewShimsRequest())]
                    assert [each.reason for each in answers] == [""]
                case _:
                    await anyio.to_thread.run_sync(surviving.stop)
                    # Containers that have no streams need nobody who has kept them.
                    os.kill(shim, signal.SIGKILL)
                    await gone(shim)
                    await anyio.to_thread.run_sync(surviving.start)
                    group.start_soon(wait)
            with anyio.fail_after(60):
                while (status := await s.status()).pid == shim or status.state != before.state:
                    await anyio.sleep(0.05)
            assert status.created_at == before.created_at
            # The same containers, and more can be made.
            assert await s.tasks() == ["one", "two"]
            for name, pid in pids.items():
                assert Path("/proc", str(pid), "exe").exists(), name
            await s.ask.tasks.kill(KillRequest(container_id="one", signal=signal.SIGTERM))
            await s.ask.tasks.wait(WaitRequest(container_id="one"))
            assert await s.delete("one") == 7
            three = await s.run("three")
            stat = Path("/proc", str(three), "stat").read_text()
            assert int(stat.rpartition(")")[2].split()[1]) == status.pid
            await s.stop()
        assert [each.exit_status for each in waited] == [0]
        assert await s.delete("two") == 137
        assert await s.delete("three") == 137
        await s.shutdown()
        await gone(status.pid)
        assert not s.bundle().exists()
