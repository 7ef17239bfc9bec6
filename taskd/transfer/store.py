"""The image store, as what a transfer takes images from and puts them into.

Source: containerd's ``core/transfer/image/imagestore.go``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from taskd.errors import AlreadyExists, NotFound, Unimplemented
from taskd.images import platforms
from taskd.images.descriptors import Descriptor
from taskd.images.platforms import Platform
from taskd.images.tree import Filter
from taskd.metadata import Descriptor as Target
from taskd.metadata import Image
from taskd.metadata.told import ToldImages
from taskd.proto.containerd.types import Platform as PlatformMessage
from taskd.proto.containerd.types.transfer import ImageStore as StoreMessage

__all__ = ["Records", "Reference", "Store", "Unpack", "platform"]

IMAGE_NAME = "io.containerd.image.name"
"""Annotation of a whole name."""
REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Reference:
    """One more name, or the beginning of names. The rest is about beginnings alone."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    """A whole name that is not among those with that beginning counts, too."""
    add_digest: bool = False
    """What has no name is named by its digest."""
    skip_named_digest: bool = False
    """And only that."""


@dataclass(frozen=True, slots=True)
class Unpack:
    """What to make snapshots for, and with which snapshotter: the usual one if it is empty."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """What a client says of the image store."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    references: tuple[Reference, ...] = ()
    unpacks: tuple[Unpack, ...] = ()

    @classmethod
    def from_message(cls, message: StoreMessage) -> Store:
        return cls(
            message.name,
            message.labels,
            tuple(map(platform, message.platforms)),
            message.all_metadata,
            message.manifest_limit,
            tuple(
                Reference(
                    each.name,
                    each.is_prefix,
                    each.allow_overwrite,
                    each.add_digest,
                    each.skip_named_digest,
                )
                for each in message.extra_references
            ),
            tuple(
                Unpack(platform(each.platform or PlatformMessage()), each.snapshotter)
                for each in message.unpacks
            ),
        )

    @property
    def filter(self) -> Filter:
        """Which part of images it is about."""
        return Filter(
            platforms.exactly(*self.platforms),
            platforms.order(self.platforms),
            self.all_metadata,
            self.manifest_limit,
        )

    def names(self, target: Descriptor) -> list[str]:
        """What an image is called of which only this is known. Raises `NotFound` if it has none."""
        names = [self.name] if self.name else []
        for reference in self.references:
            if not reference.is_prefix:
                names.append(reference.name)
            elif reference.add_digest:
                names.append(f"{reference.name}@{target.digest}")
        return _some(names)

    def imported_names(self, target: Descriptor) -> list[str]:
        """What an image is called that came with annotations. Raises `NotFound` if it has none."""
        names = []
        for reference in self.references:
            if not reference.is_prefix:
                continue
            name = _annotated(target.annotations, reference)
            if name:
                names.append(name)
            if reference.add_digest and not (name and reference.skip_named_digest):
                names.append(f"{reference.name}@{target.digest}")
        return _some(names)


class Records:
    """A namespace's records of images."""

    def __init__(self, images: ToldImages, namespace: str) -> None:
        self._images = images
        self._namespace = namespace

    def get(self, store: Store) -> Image:
        """Raises `NotFound`."""
        return self._images.get(self._namespace, store.name)

    def find(self, store: Store) -> list[Image]:
        """The images that `store` names. Raises `NotFound`, `Unimplemented`."""
        names = [store.name] if store.name else []
        for reference in store.references:
            if reference.is_prefix:
                raise Unimplemented("prefix lookup on export not implemented")
            names.append(reference.name)
        return [self._images.get(self._namespace, name) for name in names]

    async def put(
        self, names: Sequence[str], target: Descriptor, labels: Mapping[str, str]
    ) -> list[Image]:
        """Give content names, which may have been others' so far. Raises `InvalidArgument`."""
        stored = Target(target.media_type, target.digest, target.size, target.annotations)
        return [await self._put(Image(name, labels, stored)) for name in names]

    async def _put(self, image: Image) -> Image:
        while True:
            with suppress(AlreadyExists):
                return await self._images.create(self._namespace, image)
            with suppress(NotFound):  # it was removed just now
                return await self._images.update(self._namespace, image)


def platform(message: PlatformMessage) -> Platform:
    return Platform(
        message.os,
        message.architecture,
        message.variant,
        message.os_version,
        tuple(message.os_features),
    )


def _some(names: list[str]) -> list[str]:
    if not names:
        raise NotFound("no image name found")
    return names


def _annotated(annotations: Mapping[str, str], reference: Reference) -> str:
    whole = annotations.get(IMAGE_NAME, "")
    if whole:
        # One that is not whole, or not to be, is not mended.
        return whole if _translated(whole, reference) == whole else ""
    short = annotations.get(REF_NAME, "")
    return _translated(short, reference) if short else ""


def _translated(name: str, reference: Reference) -> str:
    prefix = reference.name
    if not prefix:
        return ""
    if not any(character in name for character in "/:@"):
        return f"{prefix}:{name}"
    begins = name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in ("", *"/:@")
    return name if begins or reference.allow_overwrite else ""
