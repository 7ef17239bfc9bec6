"""Images in tar archives: the OCI image layout, as Docker and containerd write and read it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import anyio.to_thread

from taskd.client.stores import CHUNK, Content
from taskd.errors import InvalidArgument, NotFound
from taskd.proto.containerd.types import Descriptor

__all__ = ["export", "import_", "referred"]

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_LAYOUT = {"imageLayoutVersion": "1.0.0"}
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


async def import_(content: Content, path: Path) -> list[tuple[str, Descriptor]]:
    """Keep what is in the archive; the names in it, and what they are.

    Raises `InvalidArgument` for what is no archive of images, OSError.
    """
    with await anyio.to_thread.run_sync(_opened, path) as archive:
        members = {member.name.removeprefix("./"): member for member in archive.getmembers()}

        def read(name: str) -> bytes:
            try:
                file = archive.extractfile(members[name])
            except KeyError:
                file = None
            if file is None:
                raise InvalidArgument(f"{path}: there is no {name}", verbatim=True)
            return file.read()

        async def keep(document: Mapping[str, Any]) -> None:
            """A blob of the archive, after those that it refers to."""
            name = "blobs/" + document["digest"].replace(":", "/")
            if name not in members:
                return  # of another platform
            inner = list(referred(document, lambda: json.loads(read(name))))
            for each in inner:
                await keep(each)
            labels = _labels(inner)
            file = archive.extractfile(members[name])
            assert file is not None
            await content.write(_pieces(file), digest=document["digest"], labels=labels)

        if "index.json" in members:
            found = json.loads(read("index.json"))["manifests"]
            for each in found:
                await keep(each)
            return [
                (name, _descriptor(each))
                for each in found
                for name in [_name(each.get("annotations") or {})]
                if name
            ]
        if "manifest.json" in members:
            return await _docker(content, json.loads(read("manifest.json")), read)
    raise InvalidArgument(
        f"{path} has neither index.json nor manifest.json: it is no archive of images",
        verbatim=True,
    )


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except tarfile.TarError as exc:
        raise InvalidArgument(f"{path}: {exc}", verbatim=True) from exc


async def _docker(
    content: Content, documents: Sequence[Mapping[str, Any]], read: Any
) -> list[tuple[str, Descriptor]]:
    """What ``docker save`` wrote before it had the OCI layout."""
    found = []
    for document in documents:
        parts = []
        for kind, name in [
            (_CONFIG, document["Config"]),
            *((_LAYER, layer) for layer in document["Layers"]),
        ]:
            data = read(name)
            digest = await content.write(data)
            if kind == _LAYER and not data.startswith(b"\x1f\x8b"):
                kind = kind.removesuffix(".gzip")
            parts.append({"mediaType": kind, "digest": digest, "size": len(data)})
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST}
        data = json.dumps(manifest | {"config": parts[0], "layers": parts[1:]}).encode()
        digest = await content.write(data, labels=_labels(parts))
        target = Descriptor(media_type=_MANIFEST, digest=digest, size=len(data))
        found += [(name, target) for name in document.get("RepoTags") or ()]
    return found


async def export(content: Content, images: Sequence[tuple[str, Descriptor]], path: Path) -> None:
    """Write an archive of all that is there of these images. Raises OSError."""
    index = []
    written: set[str] = set()
    with await anyio.to_thread.run_sync(lambda: tarfile.open(path, "w")) as archive:

        async def add(document: Mapping[str, Any], *, needed: bool) -> None:
            digest = document["digest"]
            if digest in written:
                return
            try:
                data = await content.read(digest)
            except NotFound:
                if needed:
                    raise
                return  # of another platform
            written.add(digest)
            _add(archive, "blobs/" + digest.replace(":", "/"), data)
            for each in referred(document, lambda: json.loads(data)):
                await add(each, needed="manifest" not in each["mediaType"])

        for name, target in images:
            document = {
                "mediaType": target.media_type,
                "digest": target.digest,
                "size": target.size,
            }
            await add(document, needed=True)
            index.append({**document, "annotations": {_NAMES[0]: name, _NAMES[1]: _tag(name)}})
        about = {"schemaVersion": 2, "manifests": index}
        _add(archive, "index.json", json.dumps(about).encode())
        _add(archive, "oci-layout", json.dumps(_LAYOUT).encode())


def referred(document: Mapping[str, Any], read: Any) -> Iterator[Mapping[str, Any]]:
    """Descriptors of what the blob refers to that `document` describes."""
    kind = document.get("mediaType", "")
    if kind.endswith(("index.v1+json", "manifest.list.v2+json")):
        yield from read()["manifests"]
    elif kind.endswith(("manifest.v1+json", "manifest.v2+json")):
        inner = read()
        yield inner["config"]
        yield from inner["layers"]


def _labels(documents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What keeps them from being collected as garbage."""
    return {
        f"containerd.io/gc.ref.content.{number}": each["digest"]
        for number, each in enumerate(documents)
    }


def _name(annotations: Mapping[str, str]) -> str:
    """A tag alone is no name."""
    found = [annotations[key] for key in _NAMES if "/" in annotations.get(key, "")]
    return found[0] if found else ""


def _tag(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[2] or name


def _descriptor(document: Mapping[str, Any]) -> Descriptor:
    return Descriptor(
        media_type=document["mediaType"], digest=document["digest"], size=document["size"]
    )


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await anyio.to_thread.run_sync(file.read, CHUNK):
        yield piece
