"""Descriptors as manifests have them, and media types. Source: OCI's image specification, and
containerd's ``core/images/mediatypes.go``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskd import digests
from taskd.errors import InvalidArgument, TaskdError
from taskd.images.platforms import Platform
from taskd.metadata.images import Descriptor as Target

__all__ = [
    "DOCKER_CONFIG",
    "DOCKER_LAYER",
    "DOCKER_LAYER_GZIP",
    "DOCKER_MANIFEST",
    "OCI_INDEX",
    "Descriptor",
    "from_json",
    "is_config",
    "is_index",
    "is_layer",
    "is_manifest",
    "is_non_distributable",
    "key",
    "label",
    "platform_from_json",
]

DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_MANIFESTS = {DOCKER_MANIFEST, "application/vnd.oci.image.manifest.v1+json"}
_INDEXES = {OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"}
_CONFIGS = {DOCKER_CONFIG, "application/vnd.oci.image.config.v1+json"}
_CHECKPOINTS = {
    "application/vnd.containerd.container.criu.checkpoint.criu.tar",
    "application/vnd.containerd.container.checkpoint.config.v1+proto",
}
_LAYERS = {
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.erofs.layer.v1",
}
_OCI_LAYERS = "application/vnd.oci.image.layer."
_NON_DISTRIBUTABLE = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)

_NAME = "org.opencontainers.image.ref.name"


def is_manifest(media_type: str) -> bool:
    return media_type in _MANIFESTS


def is_index(media_type: str) -> bool:
    return media_type in _INDEXES


def is_config(media_type: str) -> bool:
    return media_type in _CONFIGS


def is_layer(media_type: str) -> bool:
    return media_type.startswith(_OCI_LAYERS) or media_type.partition("+")[0] in _LAYERS


def is_non_distributable(media_type: str) -> bool:
    """Not to be passed on, as the layers of Windows."""
    return media_type.startswith(_NON_DISTRIBUTABLE)


@dataclass(frozen=True, slots=True)
class Descriptor(Target):
    """What a manifest refers to."""

    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    data: bytes = b""
    """The content itself, if it is small."""
    artifact_type: str = ""

    @classmethod
    def of(cls, target: Target) -> Descriptor:
        return cls(target.media_type, target.digest, target.size, target.annotations)

    def to_json(self) -> dict[str, Any]:
        """In the order in which Go has the fields."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.urls:
            found["urls"] = list(self.urls)
        if self.annotations:
            found["annotations"] = dict(sorted(self.annotations.items()))
        if self.data:
            found["data"] = base64.b64encode(self.data).decode()
        if self.platform:
            found["platform"] = _platform_to_json(self.platform)
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes what JSON may have in it for what it should be."""

    document: Mapping[str, Any]
    what: str

    def string(self, key: str) -> str:
        found: str = self._typed(key, str, "")
        return found

    def number(self, key: str) -> int:
        found: int = self._typed(key, int, 0)
        if isinstance(found, bool) or not 0 <= found < 2**63:
            raise self._refused(key)
        return found

    def strings(self, key: str) -> tuple[str, ...]:
        found = self._typed(key, list, [])
        if not all(isinstance(each, str) for each in found):
            raise self._refused(key)
        return tuple(found)

    def table(self, key: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self._typed(key, dict, {})
        if not all(isinstance(each, str) for each in found.values()):
            raise self._refused(key)
        return found

    def _typed(self, key: str, kind: type, default: Any) -> Any:
        found = self.document.get(key)
        if found is None:
            return default
        if not isinstance(found, kind):
            raise self._refused(key)
        return found

    def _refused(self, key: str) -> TaskdError:
        return InvalidArgument(f"{self.what}: {key} is {self.document.get(key)!r}"[:200])


def from_json(document: object) -> Descriptor:
    """Raises `InvalidArgument` for what is none."""
    if not isinstance(document, dict):
        raise InvalidArgument("descriptor is no object")
    read = _Reader(document, "descriptor")
    digest = read.string("digest")
    try:
        digests.validate(digest)
    except InvalidArgument as exc:
        raise InvalidArgument(
            f'descriptor: digest "{digest[:150]}": {exc}', verbatim=True
        ) from None
    platform = document.get("platform")
    try:
        data = base64.b64decode(read.string("data"), validate=True)
    except binascii.Error as exc:
        raise InvalidArgument(f"descriptor: data: {exc}") from None
    return Descriptor(
        media_type=read.string("mediaType"),
        digest=digest,
        size=read.number("size"),
        annotations=read.table("annotations"),
        platform=None if platform is None else platform_from_json(platform),
        urls=read.strings("urls"),
        data=data,
        artifact_type=read.string("artifactType"),
    )


def platform_from_json(document: object) -> Platform:
    """Also that of an image's configuration. Raises `InvalidArgument`."""
    if not isinstance(document, dict):
        raise InvalidArgument("platform is no object")
    read = _Reader(document, "platform")
    return Platform(
        os=read.string("os"),
        architecture=read.string("architecture"),
        variant=read.string("variant"),
        os_version=read.string("os.version"),
        os_features=read.strings("os.features"),
    )


def _platform_to_json(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        found["os.version"] = platform.os_version
    if platform.os_features:
        found["os.features"] = list(platform.os_features)
    if platform.variant:
        found["variant"] = platform.variant
    return found


def key(descriptor: Target) -> str:
    """Under which content is fetched and pushed, so that others can tell (``MakeRefKey``)."""
    name = descriptor.annotations.get(_NAME)
    key = f"{name}@{descriptor.digest}" if name is not None else descriptor.digest
    media_type = descriptor.media_type
    if is_manifest(media_type):
        return f"manifest-{key}"
    if is_index(media_type):
        return f"index-{key}"
    if is_layer(media_type):
        return f"layer-{key}"
    if is_config(media_type) or media_type in _CHECKPOINTS:
        return f"config-{key}"
    if media_type == "application/vnd.in-toto+json":
        return f"attestation-{key}"
    return f"unknown-{key}"


def label(descriptor: Target) -> str:
    """Of what refers to it, up to a number if it ends in a dot (``ChildGCLabels``)."""
    media_type = descriptor.media_type
    if is_config(media_type) or media_type in _CHECKPOINTS:
        return "containerd.io/gc.ref.content.config"
    if is_manifest(media_type):
        return "containerd.io/gc.ref.content.m."
    if is_layer(media_type):
        return "containerd.io/gc.ref.content.l."
    return "containerd.io/gc.ref.content."
