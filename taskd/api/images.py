"""``containerd.services.images.v1.Images``; source: ``services/images/local.go``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from taskd.api import request
from taskd.api.descriptors import descriptor, descriptor_message
from taskd.errors import InvalidArgument
from taskd.metadata import Image
from taskd.metadata.told import ToldImages
from taskd.proto.containerd.services.images import v1
from taskd.proto.google.protobuf import Empty, Timestamp
from taskd.wellknown import nanoseconds, timestamp

__all__ = ["Images"]


class Images(v1.ImagesBase):
    def __init__(self, store: ToldImages, collect: Callable[[], Awaitable[None]]) -> None:
        """`collect` returns when garbage has been collected that there is now."""
        self._store = store
        self._collect = collect

    async def get(self, message: v1.GetImageRequest) -> v1.GetImageResponse:
        image = self._store.get(request.namespace(), message.name)
        return v1.GetImageResponse(image=_to_message(image))

    async def list(self, message: v1.ListImagesRequest) -> v1.ListImagesResponse:
        images = await self._store.list(request.namespace(), message.filters)
        return v1.ListImagesResponse(images=[_to_message(each) for each in images])

    async def create(self, message: v1.CreateImageRequest) -> v1.CreateImageResponse:
        namespace, image = _named(message.image)
        now = _epoch(message.source_date_epoch)
        image = await self._store.create(namespace, image, now=now)
        return v1.CreateImageResponse(image=_to_message(image))

    async def update(self, message: v1.UpdateImageRequest) -> v1.UpdateImageResponse:
        namespace, image = _named(message.image)
        paths = message.update_mask.paths if message.update_mask else ()
        now = _epoch(message.source_date_epoch)
        image = await self._store.update(namespace, image, paths, now=now)
        return v1.UpdateImageResponse(image=_to_message(image))

    async def delete(self, message: v1.DeleteImageRequest) -> Empty:
        """A synchronous deletion collects the garbage there is before it returns."""
        target = descriptor(message.target).digest
        await self._store.delete(request.namespace(), message.name, target)
        if message.sync:
            await self._collect()
        return Empty()


def _named(message: v1.Image | None) -> tuple[str, Image]:
    """The caller's namespace, and the record it sends; the times are not its to say."""
    if message is None or not message.name:
        raise InvalidArgument("Image.Name required", verbatim=True)
    return request.namespace(), Image(message.name, message.labels, descriptor(message.target))


def _epoch(message: Timestamp | None) -> int | None:
    return None if message is None else nanoseconds(message)


def _to_message(image: Image) -> v1.Image:
    return v1.Image(
        name=image.name,
        labels=dict(image.labels),
        target=descriptor_message(image.target),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )
