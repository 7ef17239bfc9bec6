"""``taskd demo``: the main job, end to end, in a daemon of its own that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from grpclib.client import Channel
from grpclib.events import SendRequest, listen
from grpclib.exceptions import GRPCError

from taskd import plugins
from taskd.config import Config
from taskd.daemon import running
from taskd.errors import FailedPrecondition
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
    DeleteTaskRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.wellknown import from_any, unpack

__all__ = ["demo"]

NAMESPACE = "demo"
ID = "hello"
RUNTIME = "io.taskd.process.v1"
COMMAND = ["/bin/sh", "-c", 'echo "hello from process $$"; exit 42']
SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


async def demo() -> None:
    """Start a daemon, run a task in it through gRPC, and print what happens. Needs no root.

    Raises `FailedPrecondition` if the shim for plain processes is not installed.
    """
    if RUNTIME not in plugins.installed():
        raise FailedPrecondition(
            f"the demo needs {RUNTIME} (pip install taskd-shim-process)", verbatim=True
        )
    with tempfile.TemporaryDirectory(prefix="taskd-demo-") as folder:
        config = Config(root=Path(folder, "root"), state=Path(folder, "state"))
        async with running(config), _client(config.socket) as channel:
            print(f"daemon    serves on {config.socket}")
            async with anyio.create_task_group() as group:
                await group.start(_print_events, EventsStub(channel))
                await _run_container(channel, Path(folder))
                await anyio.sleep(0.1)  # for the last event, which the shim sends by itself
                group.cancel_scope.cancel()


async def _run_container(channel: Channel, folder: Path) -> None:
    containers = ContainersStub(channel)
    tasks = TasksStub(channel)
    stdout = folder / "stdout"
    os.mkfifo(stdout)
    await containers.create(
        CreateContainerRequest(
            container=Container(
                id=ID,
                runtime=ContainerRuntime(name=RUNTIME),
                spec=Any(type_url=SPEC_TYPE, value=_spec(folder)),
            )
        )
    )
    async with anyio.create_task_group() as group:
        group.start_soon(_print_output, stdout)
        created = await tasks.create(
            CreateTaskRequest(container_id=ID, stdout=str(stdout), stderr=str(stdout))
        )
        print(f"task      created, pid {created.pid}")
        try:
            await tasks.start(StartRequest(container_id=ID))
            exited = await tasks.wait(WaitRequest(container_id=ID))
            print(f"task      exited with status {exited.exit_status}")
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(GRPCError):  # it has exited, unless something went wrong
                    await tasks.kill(KillRequest(container_id=ID, signal=signal.SIGKILL))
                await tasks.delete(DeleteTaskRequest(container_id=ID))
    await containers.delete(DeleteContainerRequest(id=ID))


@asynccontextmanager
async def _client(socket: Path) -> AsyncIterator[Channel]:
    """A channel each of whose calls is made in the demo's namespace."""

    async def in_namespace(event: SendRequest) -> None:
        event.metadata["containerd-namespace"] = NAMESPACE

    async with Channel(path=str(socket)) as channel:
        listen(channel, SendRequest, in_namespace)
        yield channel


async def _print_events(
    events: EventsStub, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    stream = events.subscribe(SubscribeRequest())
    task_status.started()
    async for envelope in stream:
        event = from_any(envelope.event)
        print(f"event     {envelope.topic} {event and unpack(event)}")


async def _print_output(fifo: Path) -> None:
    async with await anyio.open_file(fifo) as output:
        async for line in output:
            print(f"output    {line.rstrip()}")


def _spec(folder: Path) -> bytes:
    """The OCI runtime specification of the demo's task."""
    environment = [f"PATH={os.defpath}"]
    process = {"args": COMMAND, "cwd": str(folder), "env": environment, "user": {}}
    return json.dumps({"ociVersion": "1.0.2", "process": process}).encode()
