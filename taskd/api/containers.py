"""``containerd.services.containers.v1.Containers``; source: ``services/containers/local.go``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from taskd.api import request
from taskd.errors import InvalidArgument
from taskd.metadata import Container
from taskd.metadata.told import ToldContainers
from taskd.proto.containerd.services.containers import v1
from taskd.proto.google.protobuf import Any, Empty
from taskd.types import TypedValue
from taskd.wellknown import from_any, timestamp, to_any

__all__ = ["Containers"]


class Containers(v1.ContainersBase):
    def __init__(self, store: ToldContainers) -> None:
        self._store = store

    async def get(self, message: v1.GetContainerRequest) -> v1.GetContainerResponse:
        container = self._store.get(request.namespace(), message.id)
        return v1.GetContainerResponse(container=_to_message(container))

    async def list(self, message: v1.ListContainersRequest) -> v1.ListContainersResponse:
        containers = await self._store.list(request.namespace(), message.filters)
        return v1.ListContainersResponse(containers=[_to_message(each) for each in containers])

    async def list_stream(
        self, message: v1.ListContainersRequest
    ) -> AsyncIterator[v1.ListContainerMessage]:
        for container in await self._store.list(request.namespace(), message.filters):
            yield v1.ListContainerMessage(container=_to_message(container))

    async def create(self, message: v1.CreateContainerRequest) -> v1.CreateContainerResponse:
        container = _from_message(message.container)
        container = await self._store.create(request.namespace(), container)
        return v1.CreateContainerResponse(container=_to_message(container))

    async def update(self, message: v1.UpdateContainerRequest) -> v1.UpdateContainerResponse:
        container = _from_message(message.container)
        if not container.id:
            raise InvalidArgument("Container.ID required", verbatim=True)
        paths = message.update_mask.paths if message.update_mask else ()
        container = await self._store.update(request.namespace(), container, paths)
        return v1.UpdateContainerResponse(container=_to_message(container))

    async def delete(self, message: v1.DeleteContainerRequest) -> Empty:
        """Deletes the record and no more: that no task is left is the client's business."""
        await self._store.delete(request.namespace(), message.id)
        return Empty()


def _to_message(container: Container) -> v1.Container:
    return v1.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=v1.ContainerRuntime(
            name=container.runtime_name, options=to_any(container.runtime_options)
        ),
        spec=to_any(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp(container.created_at),
        updated_at=timestamp(container.updated_at),
        extensions={
            name: Any(type_url=extension.type_url, value=extension.value)
            for name, extension in container.extensions.items()
        },
        sandbox=container.sandbox_id,
    )


def _from_message(message: v1.Container | None) -> Container:
    """The record that a client sends; the times are not its to say."""
    if message is None:
        return Container("")
    runtime = message.runtime or v1.ContainerRuntime()
    return Container(
        id=message.id,
        labels=message.labels,
        image=message.image,
        runtime_name=runtime.name,
        runtime_options=from_any(runtime.options),
        spec=from_any(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions={
            name: TypedValue(extension.type_url, extension.value)
            for name, extension in message.extensions.items()
        },
        sandbox_id=message.sandbox,
    )
