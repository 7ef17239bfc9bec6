"""Ending all that runs in a daemon."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio

from taskd.client import Client, connect
from taskd.client.spec import packed
from taskd.errors import AlreadyExists, NotFound
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import ListTasksRequest

__all__ = ["clear"]

SECONDS = 20.0
"""For all to end; a shim that does not answer until then is left to itself."""


async def clear(socket: Path) -> None:
    """Kill and delete each task of the daemon at `socket`. Raises TimeoutError if one stays."""
    with anyio.fail_after(SECONDS):
        async with connect(socket) as client:
            namespaces = await client.namespaces.list()
        async with anyio.create_task_group() as group:
            for namespace in namespaces:
                group.start_soon(_clear_namespace, socket, namespace.name)


async def _clear_namespace(socket: Path, namespace: str) -> None:
    async with connect(socket, namespace) as client:
        found = await client.tasks.list(ListTasksRequest())
        async with anyio.create_task_group() as group:
            for task in found.tasks:
                group.start_soon(_end, client, task.id)


async def _end(client: Client, id: str) -> None:  # noqa: A002
    with suppress(AlreadyExists):  # a task without its container's record cannot be asked for
        record = Container(id=id, runtime=ContainerRuntime(name="gone"), spec=packed("Spec", {}))
        await client.containers.create(CreateContainerRequest(container=record))
    with suppress(NotFound):  # somebody else was quicker
        await (await client.get(id)).leave()
