"""Archives of images into the image store: OCI's layout, and what ``docker save`` makes.

Source: containerd's ``core/images/archive/importer.go`` and ``core/transfer/local/import.go``.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BufferedReader
from typing import IO, Any, Self

from anyio.to_thread import run_sync

from taskd.content.bridges import FromLoop
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, Unknown
from taskd.images.compression import Damaged, decompressed, is_compressed
from taskd.images.descriptors import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    is_config,
    is_layer,
    is_manifest,
)
from taskd.images.tree import MAX_DEPTH, Images, parsed
from taskd.registry.reference import normalized, oci_name
from taskd.transfer.progress import Progress
from taskd.transfer.store import IMAGE_NAME, REF_NAME, Records, Store
from taskd.transfer.unpacking import Layers, Unpacker
from taskd.transfer.writing import Contents

__all__ = ["import_archive"]

LAYOUT = "oci-layout"
LAYOUT_VERSION = "1.0.0"
INDEX = "index.json"
MANIFESTS = "manifest.json"

MAX_JSON = 20 << 20
MAX_ENTRIES = 100_000
"""Of an archive: a blob each."""

_MAX_HEADER = 1 << 20
"""Bytes of what is said of an entry before it."""
_PIECE = 1 << 20
_UNCOMPRESSED = "containerd.io/uncompressed"
_SPECIAL = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


async def import_archive(
    pieces: AsyncIterator[bytes],
    media_type: str,
    compress: bool,
    store: Store,
    contents: Contents,
    records: Records,
    layers: Layers,
    progress: Progress,
) -> None:
    """Have the images of an archive.

    `media_type` is that of the archive; without one it may be compressed. `compress` has layers
    compressed that are not, where no manifest says how they are to be. Raises `Unknown` for what is
    no archive of images, `InvalidArgument`, `NotFound`, and what the store, the snapshotter and the
    differ raise.
    """
    await progress.tell("Importing")
    archive = _Archive(contents)
    with BufferedReader(FromLoop(pieces), _PIECE) as file:
        await archive.read(file, compressed=not media_type)
    images = Images(contents.store, contents.namespace)
    index = await archive.index(images, compress)
    unpacker = Unpacker(layers, contents, images, store.unpacks) if store.unpacks else None
    walk = _Walk(store, images, unpacker)
    manifests = await walk.index(index)
    for descriptor, imported in [(index, False), *((each, True) for each in manifests)]:
        with suppress(NotFound):
            names = store.imported_names(descriptor) if imported else store.names(descriptor)
            for image in await records.put(names, descriptor, store.labels):
                await progress.tell("saved", image.name, descriptor)
    await progress.tell("Completed import")


class _Walk:
    """Labels what an index refers to, and unpacks it if that is asked for."""

    def __init__(self, store: Store, images: Images, unpacker: Unpacker | None) -> None:
        self._filter = store.filter
        self._images = images
        self._unpacker = unpacker
        self._found = False

    async def index(self, index: Descriptor) -> list[Descriptor]:
        """Returns its manifests, wanted or not. Raises `Unknown` if none is wanted."""
        manifests = await self._images.children(index)
        await self._images.label(index, manifests)
        for child in self._filter(index, manifests):
            self._found = True
            await self._visit(child, 1)
        if not self._found:
            raise Unknown("image might be filtered out")
        return manifests

    async def _visit(self, descriptor: Descriptor, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"there are more than {MAX_DEPTH} indexes in one another")
        children = await self._images.children(descriptor)
        await self._images.label(descriptor, children)
        children = self._filter(descriptor, children)
        config = next((child for child in children if is_config(child.media_type)), None)
        if self._unpacker and config is not None and is_manifest(descriptor.media_type):
            layers = [child for child in children if is_layer(child.media_type)]
            if layers:
                await self._unpacker.unpack(config, layers, _nothing)
        for child in children:
            await self._visit(child, depth + 1)


async def _nothing(_: Descriptor) -> None:
    """A layer came with the archive, or is missing, which the differ will say."""


class _Archive:
    """What is in an archive."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._blobs: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}
        self._layout: Any = None
        self._manifests: Any = None

    async def read(self, file: BufferedReader[Any], *, compressed: bool) -> None:
        """Store its files. Raises `Unknown` for what is no archive."""
        try:
            source: IO[bytes] = await run_sync(decompressed, file) if compressed else file
            archive = await run_sync(_opened, source)
            if archive is None:
                return
            count = 0
            while (entry := await run_sync(archive.next)) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it keeps them all
                count += 1
                if count > MAX_ENTRIES:
                    raise InvalidArgument(f"the archive has more than {MAX_ENTRIES} entries")
                await self._entry(archive, entry)
        except (tarfile.TarError, EOFError, OSError, ValueError) as exc:
            raise Unknown(_go(exc)) from exc

    async def _entry(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        name = posixpath.normpath(entry.name)
        if entry.issym():
            target = posixpath.join(posixpath.dirname(entry.name), entry.linkname)
            self._links[entry.name] = posixpath.normpath(target)
        if not entry.isreg() or entry.issparse():
            return
        content = archive.extractfile(entry)
        assert content is not None
        if name in (LAYOUT, MANIFESTS):
            document = parsed(await run_sync(content.read, MAX_JSON), name)
            if name == LAYOUT:
                self._layout = document
            else:
                self._manifests = document
        else:
            digest = await self._store(f"tar-{name}", entry.size, content)
            self._blobs[name] = Descriptor("", digest, entry.size)

    async def _store(self, ref: str, size: int, content: IO[bytes]) -> str:
        async with self._contents.writer(ref, size) as writer:
            if writer.status.offset:
                await writer.truncate()  # of an import that was interrupted
            while piece := await run_sync(content.read, _PIECE):
                await writer.write(piece)
            with suppress(AlreadyExists):
                await writer.commit(size, "", {})
            return writer.digest

    async def index(self, images: Images, compress: bool) -> Descriptor:
        """Of all images. Raises `Unknown`, `InvalidArgument`."""
        if self._layout is not None:
            version = _text(self._layout, "imageLayoutVersion")
            if version != LAYOUT_VERSION:
                raise Unknown(f"unsupported OCI version {version}")
            if INDEX not in self._blobs:
                raise Unknown(f"missing index.json in OCI layout {LAYOUT_VERSION}")
            return replace(self._blobs[INDEX], media_type=OCI_INDEX)
        if not isinstance(self._manifests, list):
            raise Unknown("unrecognized image format")
        for name, target in self._links.items():
            if target not in self._blobs:
                raise Unknown(f'no target for symlink layer from "{name}" to "{target}"')
            self._blobs[name] = self._blobs[target]
        found: list[dict[str, Any]] = []
        for document in self._manifests:
            found += await self._manifest(images, document, compress)
        return await self._put({"schemaVersion": 2, "manifests": found}, OCI_INDEX)

    async def _manifest(
        self, images: Images, document: Any, compress: bool
    ) -> Sequence[dict[str, Any]]:
        """Descriptors of one of Docker's images, with each of its names."""
        config = self._blobs.get(_text(document, "Config"))
        if config is None:
            raise Unknown(f'image config "{_text(document, "Config")}" not found')
        config = replace(config, media_type=DOCKER_CONFIG)
        layers = []
        for name in _texts(document, "Layers"):
            if name not in self._blobs:
                raise Unknown(f'failed to resolve layers: layer "{name}" not found')
            layers.append(await self._layer(self._blobs[name], compress))
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        descriptor = await self._put(manifest, DOCKER_MANIFEST)
        platform, _, _ = await images.layers_of(config)
        if platform.os or platform.architecture:
            descriptor = replace(descriptor, platform=platform)
        names = [normalized(name) for name in _texts(document, "RepoTags")]
        if not names:
            return [descriptor.to_json()]
        return [
            replace(descriptor, annotations={IMAGE_NAME: name, REF_NAME: oci_name(name)}).to_json()
            for name in names
        ]

    async def _layer(self, layer: Descriptor, compress: bool) -> Descriptor:
        """A layer with its media type; the same compressed, if that is there or asked for."""
        store, namespace = self._contents.store, self._contents.namespace
        for info in await store.list(namespace, [f'labels."{_UNCOMPRESSED}"=={layer.digest}']):
            layer = replace(layer, digest=info.digest, size=info.size)
        if await self._is_compressed(layer):
            return replace(layer, media_type=DOCKER_LAYER_GZIP)
        if not compress:
            return replace(layer, media_type=DOCKER_LAYER)
        return await self._compressed(layer)

    async def _is_compressed(self, layer: Descriptor) -> bool:
        store, namespace = self._contents.store, self._contents.namespace
        async for piece in store.read(namespace, layer.digest, 0, 16):
            return is_compressed(piece)
        return False

    async def _compressed(self, layer: Descriptor) -> Descriptor:
        store, namespace = self._contents.store, self._contents.namespace
        packer = _packer()
        async with self._contents.writer(f"compress-blob-{layer.digest}") as writer:
            await writer.truncate()
            async for piece in store.read(namespace, layer.digest):
                await writer.write(await run_sync(packer.compress, piece))
            await writer.write(await run_sync(packer.flush))
            size = writer.status.offset
            with suppress(AlreadyExists):
                await writer.commit(size, "", {_UNCOMPRESSED: layer.digest})
            return Descriptor(DOCKER_LAYER_GZIP, writer.digest, size)

    async def _put(self, document: Mapping[str, Any], media_type: str) -> Descriptor:
        content = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        digest = await self._contents.put(f"manifest-{media_type}", content)
        return Descriptor(media_type, digest, len(content))


class _Entry(tarfile.TarInfo):
    """One whose header is whole, and no larger than it need be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as exc:  # type: ignore[attr-defined]
            # Python takes one that is not the first for the end.
            raise tarfile.ReadError(f"invalid tar header: {exc}") from None
        if entry.type in (*_SPECIAL, *_LONG) and entry.size > _MAX_HEADER:
            raise InvalidArgument(f"an entry's header has {entry.size} bytes")
        return entry


def _opened(file: IO[bytes]) -> tarfile.TarFile | None:
    """None for a file without any entry."""
    try:
        return tarfile.open(fileobj=file, mode="r|", bufsize=_PIECE, tarinfo=_Entry)
    except tarfile.ReadError as exc:
        if "empty file" in str(exc):
            return None
        raise


def _go(exc: Exception) -> str:
    """Go's words for what is no archive."""
    match exc:
        case Damaged():
            return f"failed to read the archive: {exc}"
        case tarfile.ReadError() if "unexpected end" in str(exc):
            return "unexpected EOF"
        case tarfile.TarError():
            return "archive/tar: invalid tar header"
    return f"failed to read the archive: {exc}"


def _packer() -> Any:
    from isal import isal_zlib

    return isal_zlib.compressobj(wbits=31)


def _text(document: Any, key: str) -> str:
    found = document.get(key) if isinstance(document, dict) else None
    if found is not None and not isinstance(found, str):
        raise InvalidArgument(f"{key} is no text")
    return found or ""


def _texts(document: Any, key: str) -> list[str]:
    found = (document.get(key) if isinstance(document, dict) else None) or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InvalidArgument(f"{key} is no list of texts")
    return found
