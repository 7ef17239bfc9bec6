"""Image records: names for content. Source: containerd's ``metadata/images.go``."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import anyio.lowlevel

from taskd import digests
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, TaskdError
from taskd.metadata import labels as labels_
from taskd.metadata.database import Database, Row
from taskd.metadata.namespaces import ensure

__all__ = ["Descriptor", "Image", "ImageStore"]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Refers to content. `size` is in bytes."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """A name for content, mostly a manifest or an index of manifests.

    Times are nanoseconds since the epoch, and the store's to set.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    target: Descriptor = Descriptor()
    created_at: int = 0
    updated_at: int = 0


_COLUMNS = "name, labels, media_type, digest, size, annotations, created_at, updated_at"
_SELECT = f"SELECT {_COLUMNS} FROM images WHERE namespace = ?"  # noqa: S608 - constants only
_SELECT_ONE = f"{_SELECT} AND name = ?"
_PUT = f"INSERT OR REPLACE INTO images (namespace, {_COLUMNS}) VALUES (?{', ?' * 8})"  # noqa: S608

_BATCH = 64  # records that List decodes before it lets others run


class ImageStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, name: str) -> Image:
        """The image's record. Raises `NotFound`."""
        rows = self._database.read(_SELECT_ONE, (namespace, name))
        if not rows:
            raise NotFound(f'image "{name}"')
        return _from_row(rows[0])

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Image]:
        """The images that pass one of `filters`, by name.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await labels_.prepare_filters(filters)
        found = []
        rows = self._database.read(f"{_SELECT} ORDER BY name", (namespace,))
        for number, row in enumerate(rows, start=1):
            image = _from_row(row)
            if matches.match(functools.partial(_lookup, image)):
                found.append(image)
            if number % _BATCH == 0:
                await anyio.lowlevel.checkpoint()
        return found

    async def create(self, namespace: str, image: Image, *, now: int | None = None) -> Image:
        """Store a new record, and its namespace if that is new; returns it as stored.

        `now` stands in for the time it is (ns since the epoch), for builds that are to be
        reproducible. Whether there is such content is not asked. Raises `InvalidArgument`,
        `AlreadyExists`.
        """
        _validate(image)
        at = time.time_ns() if now is None else now
        image = replace(image, created_at=at, updated_at=at)
        row = _to_row(image)

        def insert(connection: sqlite3.Connection) -> None:
            if connection.execute(_SELECT_ONE, (namespace, image.name)).fetchone():
                raise AlreadyExists(f'image "{image.name}"')
            ensure(connection, namespace)
            connection.execute(_PUT, (namespace, *row))

        await self._database.write(insert)
        return _from_row(row)

    async def update(
        self,
        namespace: str,
        image: Image,
        fieldpaths: Sequence[str] = (),
        *,
        now: int | None = None,
    ) -> Image:
        """Change the fields that `fieldpaths` name, or all; returns the result.

        Paths are ``labels``, ``labels.<key>``, ``target``, ``annotations`` and
        ``annotations.<key>``; `now` is as for `create`. Raises `InvalidArgument`, `NotFound`.
        """
        if not image.name:
            raise InvalidArgument("image name is required for update")

        def update(connection: sqlite3.Connection) -> Image:
            row = connection.execute(_SELECT_ONE, (namespace, image.name)).fetchone()
            if row is None:
                raise NotFound(f'image "{image.name}"')
            current = _from_row(row)
            updated = current if fieldpaths else image
            for path in fieldpaths:
                updated = _with_field(updated, path, image)
            _validate(updated)
            at = time.time_ns() if now is None else now
            stored = _to_row(replace(updated, created_at=current.created_at, updated_at=at))
            connection.execute(_PUT, (namespace, *stored))
            return _from_row(stored)

        return await self._database.write(update)

    async def delete(self, namespace: str, name: str, target: str = "") -> None:
        """Delete a record, and not the content; only if it has the digest `target`, if given.

        Raises `NotFound`.
        """

        def delete(connection: sqlite3.Connection) -> None:
            row = connection.execute(_SELECT_ONE, (namespace, name)).fetchone()
            if row is None:
                raise NotFound(f'image "{name}"')
            found = _from_row(row).target.digest
            if target and target != found:
                raise NotFound(f'image "{name}" has target {found}, not {target}')
            connection.execute(
                "DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name)
            )

        await self._database.write(delete, deletes=True)


def _with_field(image: Image, path: str, source: Image) -> Image:
    """`image` with the field at `path` as it is in `source`."""
    name, dot, key = path.partition(".")
    match name, bool(dot):
        case "labels", True:
            return replace(image, labels={**image.labels, key: source.labels.get(key, "")})
        case "labels", False:
            return replace(image, labels=source.labels)
        case "target", False:
            return replace(image, target=source.target)
        case "annotations", True:
            value = source.target.annotations.get(key, "")
            annotations: Mapping[str, str] = {**image.target.annotations, key: value}
        case "annotations", False:
            annotations = source.target.annotations
        case _:
            raise InvalidArgument(f'cannot update "{path}" field on image "{source.name}"')
    return replace(image, target=replace(image.target, annotations=annotations))


def _validate(image: Image) -> None:
    if not image.name:
        raise InvalidArgument("image name must not be empty")
    try:
        labels_.validate(image.labels)
    except InvalidArgument as error:
        raise error.within("image.Labels") from None
    target = image.target
    try:
        digests.validate(target.digest)
    except InvalidArgument as error:
        raise InvalidArgument(f'Target.Digest "{target.digest}" invalid: {error}') from None
    if target.size <= 0:
        raise InvalidArgument("Target.Size must be greater than zero")
    if not target.media_type:
        raise InvalidArgument("Target.MediaType must be set")


def _lookup(image: Image, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``metadata/adaptors.go``)."""
    match fieldpath:
        case ["name", *_]:
            value = image.name
        case ["target", "digest", *_]:
            value = image.target.digest
        case ["target", "mediatype", *_]:
            value = image.target.media_type
        case ["labels", *key]:
            return labels_.lookup(image.labels, key)
        case ["annotations", *key]:
            return labels_.lookup(image.target.annotations, key)
        case _:
            value = ""
    return value, bool(value)


def _to_row(image: Image) -> Row:
    target = image.target
    return (
        image.name,
        _dump(image.labels, "labels", image.name),
        target.media_type,
        target.digest,
        target.size,
        _dump(target.annotations, "Annotations", image.name),
        image.created_at,
        image.updated_at,
    )


def _dump(labels: Mapping[str, str], kind: str, name: str) -> str:
    try:
        return labels_.dump(labels)
    except TaskdError as error:
        raise error.within(f"writing {kind} for image {name}") from None


def _from_row(row: Row) -> Image:
    name, labels, media_type, digest, size, annotations, created_at, updated_at = row
    target = Descriptor(media_type, digest, size, labels_.load(annotations))
    return Image(name, labels_.load(labels), target, created_at, updated_at)
