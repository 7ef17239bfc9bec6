"""An upgrade of shims in Python: their containers go on in processes of the new version."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from grpclib.client import Channel
from harness.containers import process, spec
from harness.daemons import Taskd, client
from harness.leaks import leaving_nothing
from harness.real import need

import taskd
from taskd import pidfd
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
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.taskd.v1 import ListShimsRequest, Shim, ShimsStub

OCI, PROCESS = "io.taskd.oci.v1", "io.taskd.process.v1"
OLD = "0.0.9"
SECONDS = 60.0
SCRIPT = "trap 'echo bye; exit {status}' TERM; echo begun; while :; do sleep 0.1; done"
pytestmark = [
    pytest.mark.skipif(
        not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
    ),
    pytest.mark.timeout(300),
]


def copied(folder: Path, version: str) -> Path:
    """A copy of the package `taskd` that says that it is of that version."""
    package = Path(taskd.__file__).parent
    shutil.copytree(package, folder / "taskd", ignore=shutil.ignore_patterns("__pycache__"))
    release(folder, version)
    return folder


def release(folder: Path, version: str) -> None:
    file = folder / "taskd/__init__.py"
    text, count = re.subn('__version__ = ".*"', f'__version__ = "{version}"', file.read_text())
    assert count == 1
    file.write_text(text)


class Versioned(Taskd):
    """A daemon of the package in `imports`, if one is given."""

    imports: Path | None = None

    def command(self) -> list[str]:
        python, *rest = super().command()
        return [python, "-P", *rest]

    def environment(self) -> dict[str, str]:
        return super().environment() | ({"PYTHONPATH": str(self.imports)} if self.imports else {})


class Containers:
    """Containers that say that they have begun, and end as they are told."""

    def __init__(self, daemon: Taskd, channel: Channel, rootfs: Path) -> None:
        self.daemon = daemon
        self.rootfs = rootfs
        self.pids: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.use(channel)

    def use(self, channel: Channel) -> None:
        self.tasks = TasksStub(channel)
        self.containers = ContainersStub(channel)
        self.shims = ShimsStub(channel)

    async def run(self, name: str, runtime: str, status: int, *, terminal: bool = False) -> None:
        path = self.daemon.folder / f"{name}.out"
        os.mkfifo(path)
        self.outputs[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        script = ["/bin/sh", "-c", SCRIPT.format(status=status)]
        command = spec(self.rootfs, script, terminal=terminal)
        record = Container(id=name, runtime=ContainerRuntime(name=runtime), spec=command)
        await self.containers.create(CreateContainerRequest(container=record))
        await self.tasks.create(
            CreateTaskRequest(
                container_id=name,
                stdout=str(path),
                stderr="" if terminal else str(path),
                terminal=terminal,
            )
        )
        self.pids[name] = (await self.tasks.start(StartRequest(container_id=name))).pid
        await self.read(name, b"begun")

    async def read(self, name: str, wanted: bytes) -> bytes:
        found = b""
        async with asyncio.timeout(SECONDS):
            while wanted not in found:
                with suppress(BlockingIOError):
                    found += os.read(self.outputs[name], 65536)
                await asyncio.sleep(0.01)
        return found

    async def alive(self) -> None:
        for name, pid in self.pids.items():
            found = (await self.tasks.get(GetRequest(container_id=name))).process
            assert found is not None
            assert (found.pid, found.status) == (pid, Status.RUNNING), name

    async def end(self, name: str) -> int:
        """Its exit status; it says good-bye before."""
        await self.tasks.kill(KillRequest(container_id=name, signal=signal.SIGTERM))
        status = (await self.tasks.wait(WaitRequest(container_id=name))).exit_status
        assert (await self.read(name, b"bye")).split() == [b"bye"]
        await self.tasks.delete(DeleteTaskRequest(container_id=name))
        await self.containers.delete(DeleteContainerRequest(id=name))
        os.close(self.outputs.pop(name))
        del self.pids[name]
        return status

    async def listed(self) -> list[Shim]:
        """The processes that have tenants, but for Go's."""
        found: list[Shim] = (await self.shims.list(ListShimsRequest())).shims
        return [each for each in found if {one.id for one in each.tenants} - {"go"}]

    async def versions(self) -> set[str]:
        return {each.version for each in await self.listed()}

    async def told(self) -> set[str]:
        """Once all have told it: a daemon that was restarted is not told at once."""
        async with asyncio.timeout(SECONDS):
            while "" in (found := await self.versions()):
                await asyncio.sleep(0.05)
        return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("pool", [1, 5], ids=["a shim each", "a pool"])
async def test_an_upgrade_of_taskd(folder: Path, namespace: str, rootfs: Path, pool: int) -> None:
    """The shims that come with taskd are of its version, and so are renewed when it is."""
    need("runc", "busybox", "containerd-shim-runc-v2")
    settings = f'[shims]\nadopt = true\npool = {pool}\nidle = "0.5s"\n'
    daemon = Versioned(folder / "taskd", settings=settings)
    daemon.imports = copied(folder / "old", OLD)
    with daemon, leaving_nothing(daemon, namespace):
        async with client(daemon.address, namespace) as channel:
            containers = Containers(daemon, channel, rootfs)
            await containers.run("one", OCI, 1)
            await containers.run("two", PROCESS, 2)
            await containers.run("terminal", OCI, 3, terminal=True)
            await containers.run("go", "io.containerd.runc.v2", 4)
            assert await containers.versions() == {OLD}
            # An exec goes on as well.
            command = process(["/bin/sleep", "1000"])
            added = ExecProcessRequest(container_id="one", exec_id="more", spec=command)
            await containers.tasks.exec(added)
            await containers.tasks.start(StartRequest(container_id="one", exec_id="more"))
            before = {each.pid for each in await containers.listed()}
        assert daemon.stop() == 0
        daemon.imports = None
        daemon.start()
        async with client(daemon.address, namespace) as channel:
            containers.use(channel)

            async def renewed() -> bool:
                return await containers.versions() == {taskd.__version__}

            await until(renewed)
            after = {each.pid for each in await containers.listed()}
            assert len(after) == len(before)
            assert not before & after
            await containers.alive()
            kill = KillRequest(container_id="one", exec_id="more", signal=signal.SIGKILL)
            await containers.tasks.kill(kill)
            wait = WaitRequest(container_id="one", exec_id="more")
            assert (await containers.tasks.wait(wait)).exit_status == 128 + signal.SIGKILL
            names = ("one", "two", "terminal", "go")
            assert [await containers.end(name) for name in names] == [1, 2, 3, 4]
    log = daemon.log.read_text()
    print(log)
    assert f"runs version {OLD}; renewing it, as {taskd.__version__} is installed" in log


async def test_an_upgrade_of_one_shim(folder: Path, namespace: str, rootfs: Path) -> None:
    """One in an environment of its own is of the version that it has there."""
    need("busybox")
    imports = copied(folder / "lib", "0.9.9")
    program = folder / "containerd-shim-process-v1"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={imports} exec {sys.executable} -P -c "
        "'import taskd_process; taskd_process.main()' \"$@\"\n"
    )
    program.chmod(0o755)
    daemon = Taskd(folder / "taskd", settings="[shims]\nadopt = true\nrenew = false\n")
    with daemon, leaving_nothing(daemon, namespace):

        async def again(settings: str) -> None:
            assert daemon.stop() == 0
            (daemon.folder / "taskd.toml").write_text(settings)
            daemon.start()

        async with client(daemon.address, namespace) as channel:
            containers = Containers(daemon, channel, rootfs)
            await containers.run("one", str(program), 5)
            assert await containers.versions() == {"0.9.9"}
        release(imports, "0.9.10")
        # It is off.
        await again("[shims]\nadopt = true\nrenew = false\n")
        async with client(daemon.address, namespace) as channel:
            containers.use(channel)
            assert await containers.told() == {"0.9.9"}
        await again("[shims]\nadopt = true\n")
        async with client(daemon.address, namespace) as channel:
            containers.use(channel)

            async def renewed() -> bool:
                return await containers.versions() == {"0.9.10"}

            await until(renewed)
            await containers.alive()
            assert await containers.end("one") == 5
    print(daemon.log.read_text())
