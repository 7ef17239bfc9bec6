"""Registries: Debian's own on loopback, and images to put into them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import trustme

__all__ = ["PASSWORD", "USER", "Blob", "Image", "Registry", "busybox_layers", "layer", "program"]

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"

USER, PASSWORD = "somebody", "secret"
_HTPASSWD = f"{USER}:$2b$04$aaaaaaaaaaaaaaaaaaaaaOGY9KrC7e/pHj3EXQPxs8hKEBbvQhsvG\n"
"""The password as bcrypt has it."""


@cache
def program() -> Path:
    """Debian's docker-registry, unpacked: installed it would run at once."""
    tree = _CACHE / "docker-registry"
    unpack = ["sh", str(_HERE / "unpack.sh"), "bookworm", "docker-registry", str(tree)]
    subprocess.run(unpack, check=True)
    return tree / "usr/bin/docker-registry"


class Registry:
    """A registry on a port of its own, below `folder`; use it in ``with``.

    With `tls` it has a certificate for 127.0.0.1 of an authority of its own, with `password` only
    `USER` may use it.
    """

    def __init__(
        self, folder: Path, *, tls: bool = False, password: bool = False, address: str = "127.0.0.1"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind((address, 0))
            self.host = f"{address}:{probe.getsockname()[1]}"
        self.authority = folder / "ca.pem"
        self._tls = tls
        self._password = password

    def config(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.host, "secret": "s"}
        found: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "debug"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(self.authority)
            own = authority.issue_cert("127.0.0.1", "localhost")
            own.private_key_pem.write_to_path(self.folder / "key.pem")
            own.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
            http["tls"] = {
                "certificate": str(self.folder / "cert.pem"),
                "key": str(self.folder / "key.pem"),
            }
        if self._password:
            (self.folder / "htpasswd").write_text(_HTPASSWD)
            found["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.folder / "htpasswd")}}
        return found

    def __enter__(self) -> Self:
        config = self.folder / "config.yml"
        config.write_text(json.dumps(self.config()))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program()), "serve", str(config)], stdout=log, stderr=log
            )
        address, _, port = self.host.partition(":")
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((address, int(port))).close()
            except OSError:
                assert self._process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def name(self, image: str) -> str:
        return f"{self.host}/{image}"

    def hosts_folder(self) -> Path:
        """For clients: says where this registry is, and that its authority is to be trusted."""
        root = self.folder / "hosts"
        own = root / self.host
        own.mkdir(parents=True, exist_ok=True)
        scheme = "https" if self._tls else "http"
        lines = [f'server = "{scheme}://{self.host}"', f'[host."{scheme}://{self.host}"]']
        if self._tls:
            lines.append(f'ca = "{self.authority}"')
        (own / "hosts.toml").write_text("\n".join(lines) + "\n")
        return root

    def put(self, image: Image, name: str) -> None:
        """Store an image under ``repository:tag``, straight into the registry's files."""
        self._put(image.manifest, [*image.blobs], name)

    def put_index(self, images: Sequence[Image], name: str) -> None:
        """Store images of several platforms as one."""
        manifests = []
        for image in images:
            self._put(image.manifest, [*image.blobs], name)
            platform = {"os": "linux", "architecture": image.architecture}
            manifests.append({**image.manifest.descriptor(), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        self._put(Blob(INDEX, json.dumps(index).encode()), [], name)

    def _put(self, manifest: Blob, blobs: Sequence[Blob], name: str) -> None:
        repository, _, tag = name.partition(":")
        data = self.folder / "data/docker/registry/v2"
        own = data / "repositories" / repository
        for blob in (*blobs, manifest):
            encoded = blob.digest.partition(":")[2]
            path = data / "blobs/sha256" / encoded[:2] / encoded / "data"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob.content)
            _link(own / "_layers/sha256" / encoded, blob.digest)
        encoded = manifest.digest.partition(":")[2]
        _link(own / "_manifests/revisions/sha256" / encoded, manifest.digest)
        _link(own / "_manifests/tags" / tag / "current", manifest.digest)
        _link(own / "_manifests/tags" / tag / "index/sha256" / encoded, manifest.digest)


def _link(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link").write_text(digest)


@dataclass(frozen=True)
class Blob:
    media_type: str
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.content),
        }


MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Image:
    """An image of layers, each an uncompressed tar."""

    layers: Sequence[bytes] = field(repr=False)
    command: Sequence[str] = ("/bin/sh",)
    architecture: str = "amd64"

    @property
    def blobs(self) -> list[Blob]:
        """Configuration and layers."""
        config = {
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Cmd": list(self.command), "Env": ["PATH=/bin:/usr/bin"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in self.layers],
            },
        }
        layers = [Blob(LAYER_GZIP, _compressed(each)) for each in self.layers]
        return [Blob(CONFIG, json.dumps(config).encode()), *layers]

    @property
    def manifest(self) -> Blob:
        config, *layers = self.blobs
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [each.descriptor() for each in layers],
        }
        return Blob(MANIFEST, json.dumps(document).encode())


@cache
def _compressed(layer: bytes) -> bytes:
    return gzip.compress(layer, 1, mtime=0)


def layer(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    """A tar of files, which may be executed, and symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        folders = {str(each) for name in files for each in Path(name).parents} - {"."}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return out.getvalue()


@cache
def busybox_layers() -> tuple[bytes, ...]:
    """Busybox, and on it a second layer and a third, which is large beside them."""
    busybox = Path(os.path.realpath("/bin/busybox")).read_bytes()
    programs = dict.fromkeys(("bin/sh", "bin/cat", "bin/echo", "bin/sleep", "bin/ls"), "busybox")
    return (
        layer({"bin/busybox": busybox}, links=programs),
        layer({"etc/motd": b"hello from a layer\n"}),
        layer({"data/large": os.urandom(1 << 20) * 4}),
    )
