"""From the image store to a registry. Source: containerd's ``core/transfer/local/push.go``, and
``PushContent`` of ``core/remotes/handlers.go``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from taskd.content import ContentStore
from taskd.errors import AlreadyExists, NotFound
from taskd.images import platforms
from taskd.images.descriptors import Descriptor, is_index, is_manifest
from taskd.images.tree import Filter, Images
from taskd.together import together
from taskd.transfer.progress import Progress, Tracker
from taskd.transfer.store import Records, Store

if TYPE_CHECKING:
    from taskd.registry.resolver import Registry

__all__ = ["push"]

_SOURCE = "containerd.io/distribution.source."


async def push(
    store: Store,
    registry: Registry,
    content: ContentStore,
    namespace: str,
    records: Records,
    limiter: anyio.CapacityLimiter,
    progress: Progress,
) -> None:
    """Send an image, but for what the registry has.

    Raises `NotFound` for the image or content that is missing, and what the registry raises.
    """
    image = records.get(store)
    target = Descriptor.of(image.target)
    destination = f"OCI Registry ({registry.name})"
    await progress.tell(f"Pushing to {destination}")
    await progress.tell("pushing content", image.name, target)
    pushing = _Pushing(store, registry, content, namespace, limiter, progress, image.name)
    async with pushing.tracker.running():
        await pushing.send(target)
    await progress.tell("pushed content", image.name, target)
    await progress.tell(f"Completed push to {destination}", target=target)


class _Pushing:
    def __init__(
        self,
        store: Store,
        registry: Registry,
        content: ContentStore,
        namespace: str,
        limiter: anyio.CapacityLimiter,
        progress: Progress,
        root: str,
    ) -> None:
        self._filter = Filter(platforms.exactly(*store.platforms))
        self._registry = registry
        self._content = content
        self._namespace = namespace
        self._images = Images(content, namespace)
        self._limiter = limiter
        self._offsets: dict[str, int] = {}
        self._sent: set[str] = set()
        self._documents: list[Descriptor] = []
        self.tracker = Tracker(
            progress,
            root,
            "uploading",
            lambda each: self._offsets.get(each.digest),
            lambda each: each.digest in self._sent,
        )

    async def send(self, target: Descriptor) -> None:
        """Blobs first, then what refers to them, which a registry takes only then."""
        await self._send_blobs(target)
        for document in reversed(self._documents):
            await self._send(document)

    async def _send_blobs(self, descriptor: Descriptor) -> None:
        self.tracker.add(descriptor)
        if not (is_manifest(descriptor.media_type) or is_index(descriptor.media_type)):
            await self._send(descriptor)
            return
        # What a registry says that it has a manifest of, it has all of.
        sources = {**self._sources(descriptor), **_sources(descriptor.annotations)}
        children = [
            replace(child, annotations={**sources, **self._sources(child), **child.annotations})
            for child in self._filter(descriptor, await self._images.children(descriptor))
        ]
        self.tracker.add_children(descriptor, children)
        self._documents.append(descriptor)
        async with together() as group:
            for child in {child.digest: child for child in children}.values():
                group.start_soon(self._send_blobs, child)

    async def _send(self, descriptor: Descriptor) -> None:
        digest, media_type = descriptor.digest, descriptor.media_type
        if digest in self._sent or digest in self._offsets:
            return
        self._offsets[digest] = 0
        try:
            async with self._limiter:
                if is_manifest(media_type) or is_index(media_type):
                    pieces = [piece async for piece in self._body(digest)]
                    await self._registry.push_manifest(media_type, digest, b"".join(pieces))
                else:
                    await self._registry.push_blob(
                        media_type,
                        digest,
                        self._content.info(self._namespace, digest).size,
                        lambda: self._body(digest),
                        self._mountable(descriptor.annotations),
                    )
        except AlreadyExists:
            self.tracker.exists(descriptor)
        finally:
            del self._offsets[digest]
        self._sent.add(digest)

    async def _body(self, digest: str) -> AsyncIterator[bytes]:
        sent = 0
        async for piece in self._content.read(self._namespace, digest):
            yield piece
            sent += len(piece)
            if digest in self._offsets:
                self._offsets[digest] = sent

    def _sources(self, descriptor: Descriptor) -> Mapping[str, str]:
        try:
            return _sources(self._content.info(self._namespace, descriptor.digest).labels)
        except NotFound:
            return {}

    def _mountable(self, sources: Mapping[str, str]) -> str:
        """The repository that has most of its name in common with where it goes."""
        wanted = self._registry.reference
        names = sources.get(f"{_SOURCE}{wanted.hostname}", "").split(",")
        best, most = "", 0
        for name in filter(None, names):
            if name != wanted.repository and (common := _common(wanted.repository, name)) >= most:
                best, most = name, common
        return best


def _sources(labels: Mapping[str, str]) -> Mapping[str, str]:
    return {key: value for key, value in labels.items() if key.startswith(_SOURCE)}


def _common(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        count += 1
    return count
