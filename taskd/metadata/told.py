"""Records of containers and images whose changes are told, whoever makes them.

Sources: containerd's ``services/containers/local.go`` and ``metadata/images.go``.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskd.events import Bus
from taskd.metadata.containers import Container, ContainerStore
from taskd.metadata.database import Database
from taskd.metadata.images import Image, ImageStore
from taskd.proto.containerd import events
from taskd.proto.containerd.services.images import v1 as images
from taskd.wellknown import pack, to_any

__all__ = ["ToldContainers", "ToldImages"]


class ToldContainers(ContainerStore):
    def __init__(self, database: Database, bus: Bus) -> None:
        super().__init__(database)
        self._bus = bus

    async def create(self, namespace: str, container: Container) -> Container:
        made = await super().create(namespace, container)
        runtime = events.ContainerCreateRuntime(
            name=made.runtime_name, options=to_any(made.runtime_options)
        )
        event = events.ContainerCreate(id=made.id, image=made.image, runtime=runtime)
        await self._bus.publish(namespace, "/containers/create", pack(event))
        return made

    async def update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str] = ()
    ) -> Container:
        updated = await super().update(namespace, container, fieldpaths)
        event = events.ContainerUpdate(
            id=updated.id,
            image=updated.image,
            labels=dict(updated.labels),
            snapshot_key=updated.snapshot_key,
        )
        await self._bus.publish(namespace, "/containers/update", pack(event))
        return updated

    async def delete(self, namespace: str, container_id: str) -> None:
        await super().delete(namespace, container_id)
        event = events.ContainerDelete(id=container_id)
        await self._bus.publish(namespace, "/containers/delete", pack(event))


class ToldImages(ImageStore):
    def __init__(self, database: Database, bus: Bus) -> None:
        super().__init__(database)
        self._bus = bus

    async def create(self, namespace: str, image: Image, *, now: int | None = None) -> Image:
        made = await super().create(namespace, image, now=now)
        event = images.ImageCreate(name=made.name, labels=dict(made.labels))
        await self._bus.publish(namespace, "/images/create", pack(event))
        return made

    async def update(
        self,
        namespace: str,
        image: Image,
        fieldpaths: Sequence[str] = (),
        *,
        now: int | None = None,
    ) -> Image:
        updated = await super().update(namespace, image, fieldpaths, now=now)
        event = images.ImageUpdate(name=updated.name, labels=dict(updated.labels))
        await self._bus.publish(namespace, "/images/update", pack(event))
        return updated

    async def delete(self, namespace: str, name: str, target: str = "") -> None:
        await super().delete(namespace, name, target)
        await self._bus.publish(namespace, "/images/delete", pack(images.ImageDelete(name=name)))
