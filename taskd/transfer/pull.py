"""From a registry into the image store. Source: containerd's ``core/transfer/local/pull.go``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from taskd.errors import AlreadyExists, InvalidArgument, TaskdError
from taskd.images.descriptors import Descriptor, is_config, is_layer, is_manifest
from taskd.images.tree import MAX_DEPTH, Images
from taskd.metadata import labels as labels_
from taskd.together import together
from taskd.transfer.fetching import Fetcher
from taskd.transfer.progress import Progress, Tracker
from taskd.transfer.store import Records, Store
from taskd.transfer.unpacking import Layers, Unpacker
from taskd.transfer.writing import Contents

if TYPE_CHECKING:
    from taskd.registry.resolver import Registry

__all__ = ["pull"]

_log = logging.getLogger(__name__)

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


async def pull(
    registry: Registry,
    store: Store,
    contents: Contents,
    records: Records,
    layers: Layers,
    limiter: anyio.CapacityLimiter,
    progress: Progress,
) -> None:
    """Have an image, and its snapshots if they are asked for.

    Raises `NotFound`, `FailedPrecondition` for content that is not what it should be, and whatever
    the registry, the store, the snapshotter and the differ raise.
    """
    source = f"OCI Registry ({registry.name})"
    await progress.tell(f"Resolving from {source}")
    try:
        media_type, digest, size = await registry.resolve()
    except TaskdError as exc:
        raise exc.within("failed to resolve image") from exc
    if media_type == SCHEMA_1:
        raise InvalidArgument("schema 1 image manifests are no longer supported")
    target = Descriptor(media_type, digest, size)
    await progress.tell(f"Pulling from {source}")
    await progress.tell("fetching image content", registry.name, target)
    images = Images(contents.store, contents.namespace)
    fetcher = Fetcher(registry, contents, limiter)
    tracker = Tracker(
        progress, registry.name, "downloading", fetcher.offset, lambda each: _has(contents, each)
    )
    unpacker = Unpacker(layers, contents, images, store.unpacks) if store.unpacks else None
    async with tracker.running():
        pulling = _Pulling(registry, store, contents, images, fetcher, tracker, unpacker)
        await pulling.have(target)
    for image in await records.put(store.names(target), target, store.labels):
        await progress.tell("saved", image.name, image.target)
    await progress.tell(f"Completed pull from {source}")


class _Pulling:
    """One image that is pulled."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        contents: Contents,
        images: Images,
        fetcher: Fetcher,
        tracker: Tracker,
        unpacker: Unpacker | None,
    ) -> None:
        self._source = registry.reference
        self._filter = store.filter
        self._contents = contents
        self._images = images
        self._fetcher = fetcher
        self._tracker = tracker
        self._unpacker = unpacker

    async def have(self, descriptor: Descriptor, depth: int = 0) -> None:
        """Have what a descriptor refers to, and all that this refers to and that is wanted."""
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"there are more than {MAX_DEPTH} indexes in one another")
        children = await self._have_one(descriptor)
        config = next((child for child in children if is_config(child.media_type)), None)
        if self._unpacker and is_manifest(descriptor.media_type) and config is not None:
            layers = [child for child in children if is_layer(child.media_type)]
            others = [child for child in children if not is_layer(child.media_type)]
            async with together() as group:
                for child in others:
                    if child is config:
                        group.start_soon(self._unpack, self._unpacker, config, layers)
                    else:
                        group.start_soon(self.have, child, depth + 1)
            return
        async with together() as group:
            for child in children:
                group.start_soon(self.have, child, depth + 1)

    async def _have_one(self, descriptor: Descriptor) -> Sequence[Descriptor]:
        """The children of what has been fetched, as far as they are wanted."""
        self._tracker.add(descriptor)
        try:
            # With the content itself: each change of labels is a write to the disk.
            await self._fetcher.fetch(descriptor, self._whence(""))
        except AlreadyExists:
            self._tracker.exists(descriptor)
            await self._set_source(descriptor)
        children = await self._images.children(descriptor)
        await self._images.label(descriptor, children)
        children = self._filter(descriptor, children)
        self._tracker.add_children(descriptor, children)
        return children

    async def _unpack(
        self, unpacker: Unpacker, config: Descriptor, layers: Sequence[Descriptor]
    ) -> None:
        await self._have_one(config)
        if layers:
            await unpacker.unpack(config, layers, self._fetch_layer)

    async def _fetch_layer(self, layer: Descriptor) -> None:
        await self._have_one(layer)

    async def _set_source(self, descriptor: Descriptor) -> None:
        has = self._contents.store.info(self._contents.namespace, descriptor.digest).labels
        await self._images.set_labels(
            descriptor.digest, self._whence(has.get(self._source_key, ""))
        )

    @property
    def _source_key(self) -> str:
        return f"containerd.io/distribution.source.{self._source.hostname}"

    def _whence(self, others: str) -> dict[str, str]:
        """The label that says whence content came: to push it back, it need not be sent again."""
        repositories = {*filter(None, others.split(",")), self._source.repository}
        labels = {self._source_key: ",".join(sorted(repositories))}
        try:
            labels_.validate(labels)
        except InvalidArgument as exc:
            _log.warning("skip to append distribution label: %s", exc)
            return {}
        return labels


def _has(contents: Contents, descriptor: Descriptor) -> bool:
    try:
        contents.store.info(contents.namespace, descriptor.digest)
    except TaskdError:
        return False
    return True
