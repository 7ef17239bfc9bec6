"""Ending all that runs in a daemon."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from glob import escape
from pathlib import Path

import anyio

from taskd.client import Client, connect
from taskd.client.spec import packed
from taskd.errors import AlreadyExists, NotFound, TaskdError
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest
from taskd.proto.taskd.v1 import ListShimsRequest, ShimsStub
from taskd.runtime.survival import RECORD

__all__ = ["clear"]

SECONDS = 20.0
"""For all to end; a shim that has not done what it was told until then is killed."""


async def clear(socket: Path, namespace: str = "") -> None:
    """Kill and delete all containers of the daemon at `socket`, or a namespace with its containers.

    A taskd's shims that refuse, or do not answer, are killed: it cleans up after them. Raises
    TimeoutError if something stays.
    """
    try:
        await _clear(socket, namespace)
    except Exception:
        if not await _kill_shims(socket, namespace):
            raise
        await _clear(socket, namespace)


async def _clear(socket: Path, namespace: str) -> None:
    with anyio.fail_after(SECONDS):
        async with connect(socket) as client:
            names = [each.name for each in await client.namespaces.list()]
        async with anyio.create_task_group() as group:
            for name in names:
                if namespace in ("", name):
                    group.start_soon(_clear_namespace, socket, name)
        if namespace:
            async with connect(socket) as client:
                with suppress(TaskdError):  # there is none, or something else in it
                    await client.namespaces.delete(namespace)


async def _kill_shims(socket: Path, namespace: str) -> bool:
    """Kill those of all containers that there are still, if the daemon tells which they are."""
    async with connect(socket) as client:
        if not await client.is_taskd():
            return False
        found = (await ShimsStub(client.channel).list(ListShimsRequest())).shims
    for shim in found:
        if shim.pid and any(namespace in ("", each.namespace) for each in shim.tenants):
            for tenant in shim.tenants:
                # Another one would refuse as well: nobody is to go on with what lives in it.
                place = f"io.containerd.*/{escape(tenant.namespace)}/{escape(tenant.id)}/{RECORD}"
                for record in socket.parent.glob(place):
                    record.unlink(missing_ok=True)
            with suppress(ProcessLookupError):
                os.kill(shim.pid, signal.SIGKILL)
    return True


async def _clear_namespace(socket: Path, namespace: str) -> None:
    async with connect(socket, namespace) as client:
        tasks = await client.tasks.list(ListTasksRequest())
        containers = await client.list()
        async with anyio.create_task_group() as group:
            for id in {each.id for each in (*tasks.tasks, *containers)}:  # noqa: A001
                group.start_soon(_end, client, id)


async def _end(client: Client, id: str) -> None:  # noqa: A002
    with suppress(AlreadyExists):  # a task without its container's record cannot be asked for
        record = Container(id=id, runtime=ContainerRuntime(name="gone"), spec=packed("Spec", {}))
        await client.containers.create(CreateContainerRequest(container=record))
    with suppress(NotFound):  # somebody else was quicker
        await (await client.get(id)).leave()
