"""What an image refers to, and how it is walked. Source: containerd's ``core/images``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskd.content import ContentStore, Info
from taskd.errors import InvalidArgument, NotFound, TaskdError
from taskd.images import platforms
from taskd.images.descriptors import (
    Descriptor,
    from_json,
    is_config,
    is_index,
    is_manifest,
    label,
    platform_from_json,
)
from taskd.images.platforms import Matcher, Platform

__all__ = ["MAX_DEPTH", "MAX_DOCUMENT", "Filter", "Images", "parsed"]

MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest, an index or a configuration."""
MAX_DEPTH = 16
"""Of indexes in indexes."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which part of an image is wanted."""

    matcher: Matcher = platforms.anything
    order: Callable[[Platform | None], int] = field(default_factory=lambda: platforms.order(()))
    all_metadata: bool = False
    """Manifests and configurations of other platforms too, without their layers."""
    limit: int = 0
    """Manifests of an index, if that is above 0."""

    def __call__(self, parent: Descriptor, children: Sequence[Descriptor]) -> list[Descriptor]:
        """Raises `NotFound` if a limited number is wanted and there is none."""
        found = list(children)
        if self.all_metadata:
            others = parent.platform and not self.matcher(parent.platform)
            if others and is_manifest(parent.media_type):
                found = [child for child in found if is_config(child.media_type)]
        else:
            found = [child for child in found if not child.platform or self.matcher(child.platform)]
        if self.limit > 0 and is_index(parent.media_type):
            found.sort(key=lambda child: self.order(child.platform))
            if not found:
                raise NotFound("no match for platform in manifest")
            found = found[: self.limit]
        return found


class Images:
    """A namespace's content, as what images are made of."""

    def __init__(self, content: ContentStore, namespace: str) -> None:
        self._content = content
        self._namespace = namespace

    async def document(self, descriptor: Descriptor) -> Any:
        """The JSON that a descriptor refers to. Raises `NotFound`, `InvalidArgument`."""
        size = self._content.info(self._namespace, descriptor.digest).size
        if size > MAX_DOCUMENT:
            raise InvalidArgument(f"{descriptor.digest} has {size} bytes, more than {MAX_DOCUMENT}")
        pieces = [piece async for piece in self._content.read(self._namespace, descriptor.digest)]
        return parsed(b"".join(pieces), descriptor.digest)

    async def children(self, descriptor: Descriptor) -> list[Descriptor]:
        """What a manifest or an index refers to; nothing for anything else.

        Raises `NotFound`, `InvalidArgument`.
        """
        media_type = descriptor.media_type
        if not (is_manifest(media_type) or is_index(media_type)):
            return []
        document = await self.document(descriptor)
        try:
            _require_kind(document, media_type)
            if is_index(media_type):
                return [from_json(each) for each in _list(document, "manifests")]
            layers = [from_json(each) for each in _list(document, "layers")]
            return [from_json(document.get("config")), *layers]
        except TaskdError as exc:
            raise exc.within(f"children: invalid desc {descriptor.digest}") from None

    async def label(self, parent: Descriptor, children: Sequence[Descriptor]) -> None:
        """Let `parent` refer to its children for the garbage collector."""
        labels: dict[str, str] = {}
        counts: dict[str, int] = {}
        for child in children:
            key = label(child)
            number = counts[key] = counts.get(key, -1) + 1
            labels[f"{key}{number}" if number or key.endswith(".") else key] = child.digest
        if labels:
            await self.set_labels(parent.digest, labels)

    async def set_labels(self, digest: str, labels: dict[str, str]) -> None:
        """Beside those that it has; nothing is written if it has them."""
        has = self._content.info(self._namespace, digest).labels
        changed = {key: value for key, value in labels.items() if has.get(key) != value}
        if changed:
            paths = [f"labels.{key}" for key in changed]
            await self._content.update(self._namespace, Info(digest, labels=changed), paths)

    async def layers_of(self, config: Descriptor) -> tuple[Platform, tuple[str, ...], str]:
        """An image's platform, the digests of its layers as they are unpacked, and their type.

        Raises `NotFound`, `InvalidArgument`.
        """
        document = await self.document(config)
        if not isinstance(document, dict):
            raise InvalidArgument(f"image config {config.digest} is no object")
        rootfs = document.get("rootfs") or {}
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        diff_ids = found if isinstance(found, list) else []
        if not all(isinstance(each, str) for each in diff_ids):
            raise InvalidArgument(f"image config {config.digest}: diff_ids")
        kind = rootfs.get("type") if isinstance(rootfs, dict) else ""
        return platform_from_json(document), tuple(diff_ids), str(kind or "")


def parsed(content: bytes, what: str) -> Any:
    """Raises `InvalidArgument` for what is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{what} is no JSON: {exc}") from None


def _list(document: dict[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise InvalidArgument(f"{key} is no list")
    return found


def _require_kind(document: object, media_type: str) -> None:
    """One thing must not pass for another, depending on who looks (CVE-2021-41190)."""
    if not isinstance(document, dict):
        raise InvalidArgument("no object")
    says = document.get("mediaType") or ""
    if document.get("fsLayers"):
        raise InvalidArgument("media-type: schema 1 not supported")
    if is_manifest(media_type):
        if document.get("manifests") or is_index(str(says)):
            words = f"media-type: expected manifest but found index ({media_type})"
            raise InvalidArgument(words)
    elif document.get("config") or document.get("layers") or is_manifest(str(says)):
        raise InvalidArgument(f"media-type: expected index but found manifest ({media_type})")
