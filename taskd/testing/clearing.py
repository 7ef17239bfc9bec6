"""Ending what runs in a daemon, whatever happens meanwhile to the one who wants it ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from grpclib.exceptions import GRPCError

from taskd.grpc.channel import Channel
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.namespaces.v1 import ListNamespacesRequest, NamespacesStub
from taskd.proto.containerd.services.tasks.v1 import (
    DeleteTaskRequest,
    KillRequest,
    ListTasksRequest,
    ResumeTaskRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.testing.spec import packed

__all__ = ["clear", "whatever_happens"]

SECONDS = 20.0
"""For all to end; a shim that does not answer until then is left to itself."""


async def clear(socket: Path) -> None:
    """Kill and delete each task of the daemon at `socket`. Raises TimeoutError if one stays."""
    async with Channel(socket) as channel:
        with anyio.fail_after(SECONDS):
            namespaces = await NamespacesStub(channel).list(ListNamespacesRequest())
            async with anyio.create_task_group() as group:
                for namespace in namespaces.namespaces:
                    group.start_soon(_clear_namespace, channel, namespace.name)


async def _clear_namespace(channel: Channel, namespace: str) -> None:
    records, tasks = ContainersStub(channel), TasksStub(channel)
    metadata = {"containerd-namespace": namespace}

    async def end(id: str, paused: bool) -> None:  # noqa: A002
        with suppress(GRPCError):  # a task without its container's record cannot be asked for
            record = Container(
                id=id, runtime=ContainerRuntime(name="gone"), spec=packed("Spec", {})
            )
            await records.create(CreateContainerRequest(container=record), metadata=metadata)
        with suppress(GRPCError):  # it has ended already, or has not begun
            if paused:  # cgroup v1: nothing that is frozen ends
                await tasks.resume(ResumeTaskRequest(container_id=id), metadata=metadata)
            await tasks.kill(
                KillRequest(container_id=id, signal=signal.SIGKILL, all=True), metadata=metadata
            )
            await tasks.wait(WaitRequest(container_id=id), metadata=metadata)
        with suppress(GRPCError):  # its shim has died, and it is gone
            await tasks.delete(DeleteTaskRequest(container_id=id), metadata=metadata)

    found = await tasks.list(ListTasksRequest(), metadata=metadata)
    async with anyio.create_task_group() as group:
        for task in found.tasks:
            group.start_soon(end, task.id, task.status == Status.PAUSED)


async def whatever_happens(work: Coroutine[Any, Any, object]) -> None:
    """Await the end of `work`, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as exc:
                cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled
