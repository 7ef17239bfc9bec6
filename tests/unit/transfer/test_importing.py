"""Archives of images, whole and broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
import pytest
from harness.registry import Image, layer
from harness.transfers import NAMESPACE, Parts

from taskd.codec import decode
from taskd.errors import InvalidArgument, NotFound, TaskdError, Unknown
from taskd.proto.containerd.types.transfer import Data, WindowUpdate
from taskd.together import together
from taskd.transfer import importing
from taskd.transfer.exporting import Options
from taskd.transfer.service import ExportStream, ImportStream
from taskd.transfer.store import Reference, Store
from taskd.transfer.streams import PIECE, Stream
from taskd.wellknown import pack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IMAGE = Image((layer({"a": b"1"}), layer({"b": os.urandom(3 << 20)})))
STORE = Store(references=(Reference("docker.io/library/thing", is_prefix=True),))


def archive(entries: Sequence[tuple[str, bytes]], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            file.addfile(entry)
    return out.getvalue()


def saved(**changes: Any) -> bytes:
    """What ``docker save`` makes; the second layer is a link to where it is."""
    document = {
        "Config": "config.json",
        "RepoTags": ["thing:1"],
        "Layers": ["0/layer.tar", "1/layer.tar"],
        **changes,
    }
    return archive(
        [
            ("config.json", IMAGE.blobs[0].content),
            ("0/layer.tar", IMAGE.layers[0]),
            ("two/layer.tar", IMAGE.layers[1]),
            ("manifest.json", json.dumps([document]).encode()),
        ],
        {"1/layer.tar": "../two/layer.tar"},
    )


def layout() -> bytes:
    blobs = [*IMAGE.blobs, IMAGE.manifest]
    described = {
        **IMAGE.manifest.descriptor(),
        "annotations": {"io.containerd.image.name": "docker.io/library/thing:1"},
    }
    index = {"schemaVersion": 2, "manifests": [described]}
    return archive(
        [
            *((f"blobs/sha256/{each.digest.partition(':')[2]}", each.content) for each in blobs),
            ("index.json", json.dumps(index).encode()),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ]
    )


async def imported(parts: Parts, data: bytes, store: Store = STORE, **options: Any) -> None:
    stream = Stream()

    async def send() -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            for start in range(0, len(data), PIECE):
                await stream.incoming.send(pack(Data(data=data[start : start + PIECE])))
            stream.incoming.close()

    async def listen() -> None:
        async for _ in stream.outgoing:
            pass

    async with together() as group:
        group.start_soon(send)
        group.start_soon(listen)
        source = ImportStream(stream, **options)
        with anyio.fail_after(20):
            await parts.transfers().import_archive(source, store, parts.caller())
        group.cancel_scope.cancel()


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd.compress], ids=["", "gz", "zst"])
@pytest.mark.parametrize("made", [saved, layout])
async def test_whole(parts: Parts, made: Any, packed: Any) -> None:
    await imported(parts, packed(made()))
    image = parts.images.get(NAMESPACE, "docker.io/library/thing:1")
    assert await parts.left() == []
    # The layers, the configuration, the manifest, and for OCI's layout nothing of the index.
    assert len(await parts.digests()) == 4
    assert image.target.digest in await parts.digests()
    await parts.images.delete(NAMESPACE, image.name)
    assert await parts.left() == []
    assert (await parts.digests(), parts.files()) == (set(), [])


async def test_compressed_on_the_way(parts: Parts) -> None:
    await imported(parts, saved(), compress=True)
    assert await parts.left() == []
    found = [info.labels for info in await parts.content.list(NAMESPACE)]
    digests = [each.get("containerd.io/uncompressed") for each in found]
    assert sorted(filter(None, digests)) == sorted(
        f"sha256:{hashlib.sha256(each).hexdigest()}" for each in IMAGE.layers
    )


async def test_there_and_back(parts: Parts) -> None:
    await imported(parts, layout())
    stream = Stream()
    got: list[bytes] = []

    async def read() -> None:
        await stream.incoming.send(pack(WindowUpdate(update=1 << 30)))
        async for value in stream.outgoing:
            got.append(decode(Data, value.value).data)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        target = ExportStream(stream, Options())
        source = Store("docker.io/library/thing:1")
        await parts.transfers().export_archive(source, target, parts.caller())
    await parts.images.delete(NAMESPACE, source.name)
    assert await parts.left() == []
    await imported(parts, b"".join(got))
    found = parts.images.get(NAMESPACE, "docker.io/library/thing:1")
    assert found.target.digest == IMAGE.manifest.digest


def bomb() -> bytes:
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 30
    return entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)


def flipped() -> bytes:
    """With damage in the header of another entry than the first."""
    data = bytearray(saved())
    position = data.index(b"0/layer.tar")
    data[position] ^= 1
    return bytes(data)


BROKEN: dict[str, tuple[bytes, type[TaskdError], str]] = {
    "nothing": (b"", Unknown, "unrecognized image format"),
    "noise": (os.urandom(5000), Unknown, "invalid tar header"),
    "text": (b"hello", Unknown, "unexpected EOF|invalid tar header"),
    "cut in a blob": (saved()[: 2 << 20], Unknown, "unexpected EOF"),
    "cut in a header": (saved()[:700], Unknown, "unexpected EOF|invalid tar header|unrecognized"),
    "damaged header": (flipped(), Unknown, "invalid tar header"),
    "cut gzip": (gzip.compress(saved())[:-100], Unknown, "failed to read the archive"),
    "damaged gzip": (gzip.compress(saved())[:5000] + bytes(999), Unknown, "failed to read"),
    "cut zstd": (zstd.compress(saved())[:-100], Unknown, "failed to read the archive"),
    "large header": (bomb(), InvalidArgument, "an entry's header has 1073741824 bytes"),
    "no configuration": (saved(Config="no"), Unknown, 'image config "no" not found'),
    "no layer": (saved(Layers=["no"]), Unknown, 'layer "no" not found'),
    "bad name": (saved(RepoTags=["../../x"]), InvalidArgument, "invalid reference format"),
    "names that are none": (saved(RepoTags=[1]), InvalidArgument, "RepoTags"),
    "layers that are none": (saved(Layers="x"), InvalidArgument, "Layers"),
    "no index": (archive([("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]), Unknown, "index"),
    "other version": (archive([("oci-layout", b'{"imageLayoutVersion":"2"}')]), Unknown, "2"),
    "no JSON": (archive([("manifest.json", b"{")]), InvalidArgument, "manifest.json is no JSON"),
    "deep JSON": (archive([("manifest.json", b"[" * 99999)]), InvalidArgument, "is no JSON"),
    "dangling link": (
        archive([("manifest.json", b"[]")], {"x": "nowhere"}),
        Unknown,
        'no target for symlink layer from "x" to "nowhere"',
    ),
    "missing manifest": (
        archive(
            [
                ("index.json", json.dumps({"manifests": [IMAGE.manifest.descriptor()]}).encode()),
                ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ]
        ),
        NotFound,
        IMAGE.manifest.digest,
    ),
}


@pytest.mark.parametrize(("data", "kind", "words"), BROKEN.values(), ids=BROKEN)
async def test_broken(parts: Parts, data: bytes, kind: type[TaskdError], words: str) -> None:
    with pytest.raises(kind, match=words):
        await imported(parts, data)
    assert await parts.left() == []
    assert (await parts.digests(), parts.files()) == (set(), [])
    await imported(parts, saved())


async def test_too_many_entries(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_ENTRIES", 3)
    with pytest.raises(InvalidArgument, match="more than 3 entries"):
        await imported(parts, saved())
    assert await parts.left() == []
    assert parts.files() == []


async def test_a_client_that_goes_in_the_middle(parts: Parts) -> None:
    stream = Stream()
    async with anyio.create_task_group() as group:
        source = ImportStream(stream)
        group.start_soon(parts.transfers().import_archive, source, STORE, parts.caller())
        await stream.incoming.send(pack(Data(data=saved()[: 1 << 20])))
        await anyio.sleep(0.2)
        group.cancel_scope.cancel()
    assert await parts.left() == []
    assert parts.files() == []
