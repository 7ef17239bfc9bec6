"""An image of a root filesystem, written down by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from taskd import digests
from taskd.client import Client
from taskd.proto.containerd.types import Descriptor

__all__ = ["docker_archive", "put"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


async def put(client: Client, name: str, rootfs: Path, **config: Any) -> None:
    """Two layers: the root filesystem, and a file ``/second``."""
    layers = [_tar(rootfs, {}), _tar(None, {"second": b"second layer\n"})]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digests.of(layer) for layer in layers]},
    }
    async with client.leases.hold():
        blobs = [
            ("application/vnd.oci.image.config.v1+json", json.dumps(document).encode()),
            *(("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers),
        ]
        described = [
            {"mediaType": kind, "digest": await client.content.write(data), "size": len(data)}
            for kind, data in blobs
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described[0],
            "layers": described[1:],
        }
        data = json.dumps(manifest).encode()
        labels = {
            f"containerd.io/gc.ref.content.{number}": each["digest"]
            for number, each in enumerate(described)
        }
        digest = await client.content.write(data, labels=labels)
        await client.images.put(name, Descriptor(MANIFEST, digest, len(data)))


def docker_archive(path: Path, tag: str, rootfs: Path, **config: Any) -> None:
    """What ``docker save`` wrote before it had the OCI layout."""
    layers = [_tar(rootfs, {}), _tar(None, {"second": b"second layer\n"})]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digests.of(layer) for layer in layers]},
    }
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    about = [{"Config": "config.json", "RepoTags": [tag], "Layers": names}]
    files = dict(zip(names, layers, strict=True))
    files |= {"config.json": json.dumps(document).encode()}
    path.write_bytes(_tar(None, {**files, "manifest.json": json.dumps(about).encode()}))


def _tar(folder: Path | None, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if folder is not None:
            tar.add(folder, ".")
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return buffer.getvalue()
