"""A client of a daemon's, in shorter words for what tests do again and again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from grpclib.client import Channel
from grpclib.exceptions import GRPCError

from harness.containers import spec
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import EventsStub
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

__all__ = ["RUNC", "Client", "shim_pid"]

RUNC = "io.containerd.runc.v2"


class Client:
    """One channel, and a root filesystem for its containers."""

    def __init__(self, channel: Channel, rootfs: Path) -> None:
        self.channel = channel
        self.rootfs = rootfs
        self.tasks = TasksStub(channel)
        self.containers = ContainersStub(channel)
        self.events = EventsStub(channel)

    async def container(
        self,
        name: str,
        *arguments: str,
        runtime: str = RUNC,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        container = Container(
            id=name,
            runtime=ContainerRuntime(name=runtime),
            spec=spec(self.rootfs, arguments, annotations=annotations),
        )
        await self.containers.create(CreateContainerRequest(container=container))

    async def start(
        self,
        name: str,
        *arguments: str,
        runtime: str = RUNC,
        annotations: Mapping[str, str] | None = None,
    ) -> int:
        await self.container(name, *arguments, runtime=runtime, annotations=annotations)
        await self.tasks.create(CreateTaskRequest(container_id=name))
        return (await self.tasks.start(StartRequest(container_id=name))).pid

    async def end(self, name: str) -> int:
        with suppress(GRPCError):  # it may have exited by itself
            await self.tasks.kill(KillRequest(container_id=name, signal=9))
        await self.tasks.wait(WaitRequest(container_id=name))
        return await self.remove(name)

    async def kill(self, name: str, number: int) -> None:
        await self.tasks.kill(KillRequest(container_id=name, signal=number))

    async def remove(self, name: str) -> int:
        found = await self.tasks.delete(DeleteTaskRequest(container_id=name))
        await self.containers.delete(DeleteContainerRequest(id=name))
        return found.exit_status


def shim_pid(namespace: str, name: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").split()
        except OSError:
            continue
        if namespace.encode() in command and name.encode() in command and b"start" not in command:
            return int(folder.name)
    raise AssertionError("there is no shim")
