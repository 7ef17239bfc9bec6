"""Images of the image store into an archive, in OCI's layout and for ``docker load`` alike.

Source: containerd's ``core/images/archive/exporter.go``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskd.content import ContentStore
from taskd.errors import DataLoss, InvalidArgument, NotFound
from taskd.images import platforms
from taskd.images.descriptors import (
    OCI_INDEX,
    Descriptor,
    is_index,
    is_manifest,
    is_non_distributable,
)
from taskd.images.platforms import Platform
from taskd.images.tree import MAX_DEPTH, Images
from taskd.metadata import Image
from taskd.registry.reference import familiar, oci_name
from taskd.transfer.progress import Progress
from taskd.transfer.store import IMAGE_NAME, REF_NAME, Records, Store

__all__ = ["Options", "export_archive"]

_log = logging.getLogger(__name__)

_SOURCE = "containerd.io/distribution.source"
_BLOCK = 512

Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Options:
    platforms: tuple[Platform, ...] = ()
    """Of indexes; this machine's if there are none."""
    all_platforms: bool = False
    """All manifests of an index are to be there."""
    skip_docker: bool = False
    """Without what ``docker load`` reads."""
    skip_non_distributable: bool = False


async def export_archive(
    store: Store,
    options: Options,
    send: Send,
    content: ContentStore,
    namespace: str,
    records: Records,
    progress: Progress,
) -> None:
    """Send an archive of the images that `store` names.

    Raises `NotFound` for an image or for content that is missing, `InvalidArgument` for what is no
    image, and what `send` raises.
    """
    await progress.tell("Exporting")
    images = records.find(store)
    archive = _Archive(content, namespace, options)
    await archive.add(images)
    async for piece in archive.pieces():
        await send(piece)
    await progress.tell("Completed export")


class _Archive:
    def __init__(self, content: ContentStore, namespace: str, options: Options) -> None:
        self._content = content
        self._namespace = namespace
        self._images = Images(content, namespace)
        self._options = options
        self._wanted = (
            platforms.exactly(*options.platforms)
            if options.platforms
            else platforms.exactly(platforms.here())
        )
        self._order = platforms.order(options.platforms)
        self._entries: dict[str, bytes | Descriptor] = {}
        """What is in it, by name; of a folder, whose name ends in a slash, nothing."""
        self._docker: dict[str, tuple[Descriptor, list[str]]] = {}
        """Manifests that Docker is told of, and their names."""

    async def add(self, images: Sequence[Image]) -> None:
        manifests = [self._named(image) for image in images]
        chosen: dict[str, str] = {}
        for target in manifests:
            digest = chosen.get(target.digest)
            if digest is None:
                digest = chosen[target.digest] = await self._add(target)
            if digest and (name := target.annotations.get(IMAGE_NAME)):
                self._docker[digest][1].append(name)
        self._put("oci-layout", {"imageLayoutVersion": "1.0.0"})
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [target.to_json() for target in manifests],
        }
        self._put("index.json", index)
        if self._docker and not self._options.skip_docker:
            self._put(
                "manifest.json", [await self._for_docker(*each) for each in self._docker.values()]
            )
        folders = {name.rpartition("/")[0] for name in self._entries if name.startswith("blobs/")}
        for folder in folders:
            self._entries |= {"blobs/": b"", f"{folder}/": b""}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The archive's bytes. Raises `NotFound`, `DataLoss`."""
        for name, content in sorted(self._entries.items()):
            entry = tarfile.TarInfo(name)
            if isinstance(content, Descriptor):
                entry.size, entry.mode = content.size, 0o444
                yield _header(entry)
                async for piece in self._blob(content):
                    yield piece
            elif name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                yield _header(entry)
            else:
                entry.size, entry.mode = len(content), 0o444 if name == "oci-layout" else 0o644
                yield _header(entry) + content
            yield bytes(-entry.size % _BLOCK)
        yield bytes(2 * _BLOCK)

    async def _blob(self, blob: Descriptor) -> AsyncIterator[bytes]:
        found, size = hashlib.sha256(), 0
        async for piece in self._content.read(self._namespace, blob.digest):
            found.update(piece)
            size += len(piece)
            if size > blob.size:
                break
            yield piece
        if size != blob.size:
            raise DataLoss(f"unexpected copy size of {blob.digest}: {size} != {blob.size}")
        if f"sha256:{found.hexdigest()}" != blob.digest:
            raise DataLoss(f"unexpected digest sha256:{found.hexdigest()} copied")

    async def _add(self, target: Descriptor) -> str:
        """Add all of an image; returns the digest of the manifest that Docker is told of."""
        if is_manifest(target.media_type):
            await self._add_tree(target)
            self._docker.setdefault(target.digest, (target, []))
            return target.digest
        if not is_index(target.media_type):
            raise InvalidArgument("only manifests may be exported")
        self._add_blob(target)
        fitting = []
        for manifest in await self._images.children(target):
            if manifest.platform is None or self._wanted(manifest.platform):
                fitting.append(manifest)
            elif not self._options.all_platforms:
                continue
            await self._add_tree(manifest)
        if not fitting:
            raise NotFound("no manifest found for platform")
        fitting.sort(key=lambda each: self._order(each.platform))
        self._docker.setdefault(fitting[0].digest, (fitting[0], []))
        return fitting[0].digest

    async def _add_tree(self, descriptor: Descriptor, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"there are more than {MAX_DEPTH} indexes in one another")
        children = await self._images.children(descriptor)
        self._add_blob(descriptor)
        for child in children:
            await self._add_tree(child, depth + 1)

    def _add_blob(self, descriptor: Descriptor) -> None:
        media_type = descriptor.media_type
        if self._options.skip_non_distributable and is_non_distributable(media_type):
            return
        self._entries[_place(descriptor.digest)] = descriptor

    def _put(self, name: str, document: object) -> None:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        self._entries[name] = text.encode()

    def _named(self, image: Image) -> Descriptor:
        labels = self._content.info(self._namespace, image.target.digest).labels
        sources = {key: value for key, value in labels.items() if key.startswith(_SOURCE)}
        names = {IMAGE_NAME: image.name, REF_NAME: oci_name(image.name)}
        found = Descriptor.of(image.target)
        return replace(found, annotations={**found.annotations, **names, **sources})

    async def _for_docker(self, manifest: Descriptor, names: Sequence[str]) -> Mapping[str, Any]:
        config, *layers = await self._images.children(manifest)
        return {
            "Config": _place(config.digest),
            "RepoTags": [familiar(name) for name in names] or None,
            "Layers": [_place(layer.digest) for layer in layers],
        }


def _place(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _header(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.USTAR_FORMAT if entry.size < 8 << 30 else tarfile.PAX_FORMAT)
