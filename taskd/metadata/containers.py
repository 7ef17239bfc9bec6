"""Container records. Source: containerd's ``metadata/containers.go``."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import anyio.lowlevel

from taskd import identifiers
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, TaskdError
from taskd.metadata import extensions as extensions_
from taskd.metadata import labels as labels_
from taskd.metadata.database import Database, Row
from taskd.metadata.namespaces import ensure
from taskd.types import TypedValue

__all__ = ["Container", "ContainerStore"]


@dataclass(frozen=True, slots=True)
class Container:
    """What a client declared about a container, from which its tasks are made.

    Times are nanoseconds since the epoch, and the store's to set.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime_name: str = ""
    runtime_options: TypedValue | None = None
    spec: TypedValue | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandbox_id: str = ""


_COLUMNS = (
    "id, labels, image, runtime_name, runtime_options_type, runtime_options_value, spec_type, "
    "spec_value, snapshotter, snapshot_key, created_at, updated_at, extensions, sandbox_id"
)
_SELECT = f"SELECT {_COLUMNS} FROM containers WHERE namespace = ?"  # noqa: S608 - constants only
_SELECT_ONE = f"{_SELECT} AND id = ?"
_SELECT_LABELLED = (
    f"SELECT namespace, {_COLUMNS} FROM containers "  # noqa: S608 - constants only
    "WHERE EXISTS (SELECT 1 FROM json_each(labels) AS label WHERE label.key = ?) "
    "ORDER BY namespace, id"
)
_PUT = (
    f"INSERT INTO containers (namespace, {_COLUMNS}) VALUES (?{', ?' * 14}) "  # noqa: S608
    "ON CONFLICT (namespace, id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", "))
)

_REPLACEABLE = ("labels", "spec", "extensions", "image", "snapshotkey")
_BATCH = 64  # records that List decodes before it lets others run


class ContainerStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, container_id: str) -> Container:
        """The container's record. Raises `NotFound`."""
        rows = self._database.read(_SELECT_ONE, (namespace, container_id))
        if not rows:
            raise NotFound(f'container "{container_id}" in namespace "{namespace}"')
        return _from_row(rows[0])

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Container]:
        """The containers that pass one of `filters`, by id.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await labels_.prepare_filters(filters)
        found = []
        rows = self._database.read(f"{_SELECT} ORDER BY id", (namespace,))
        for number, row in enumerate(rows, start=1):
            container = _from_row(row)
            if matches.match(functools.partial(_lookup, container)):
                found.append(container)
            if number % _BATCH == 0:
                await anyio.lowlevel.checkpoint()
        return found

    def labelled(self, key: str) -> Sequence[tuple[str, Container]]:
        """All containers that have that label, with their namespaces."""
        rows = self._database.read(_SELECT_LABELLED, (key,))
        return [(namespace, _from_row(tuple(row))) for namespace, *row in rows]

    async def create(self, namespace: str, container: Container) -> Container:
        """Store a new record, and its namespace if that is new; returns it as stored.

        Raises `InvalidArgument`, `AlreadyExists`.
        """
        try:
            _validate(container)
        except TaskdError as error:
            raise error.within("create container failed validation") from None
        now = time.time_ns()
        container = replace(container, created_at=now, updated_at=now)
        row = _to_row(container)

        def insert(connection: sqlite3.Connection) -> None:
            ensure(connection, namespace)
            if connection.execute(_SELECT_ONE, (namespace, container.id)).fetchone():
                raise AlreadyExists(f'container "{container.id}"')
            connection.execute(_PUT, (namespace, *row))

        await self._database.write(insert)
        return _without_empty_labels(container)

    async def update(
        self, namespace: str, container: Container, fieldpaths: Sequence[str] = ()
    ) -> Container:
        """Change the fields that `fieldpaths` name, or all that may change; returns the result.

        Paths are ``labels``, ``labels.<key>``, ``extensions``, ``extensions.<key>``, ``spec``,
        ``image`` and ``snapshotkey``. As in containerd, extensions that are left out of a
        replacement stay in the store, though not in the result. Raises `InvalidArgument`,
        `NotFound`.
        """
        if not container.id:
            raise InvalidArgument("must specify a container id")

        def update(connection: sqlite3.Connection) -> Container:
            row = connection.execute(_SELECT_ONE, (namespace, container.id)).fetchone()
            if row is None:
                raise _missing(connection, "update", namespace, container.id, f'"{container.id}"')
            current = _from_row(row)
            if not fieldpaths:
                _check_immutable(current, container)
            updated = current
            for path in fieldpaths or _REPLACEABLE:
                updated = _with_field(updated, path, container)
            try:
                _validate(updated)
            except TaskdError as error:
                raise error.within("update failed validation") from None
            updated = replace(updated, updated_at=time.time_ns())
            stored = replace(updated, extensions={**current.extensions, **updated.extensions})
            connection.execute(_PUT, (namespace, *_to_row(stored)))
            return _without_empty_labels(updated)

        return await self._database.write(update)

    async def delete(self, namespace: str, container_id: str) -> None:
        """Delete a record; whether a task is left is not asked here. Raises `NotFound`."""

        def delete(connection: sqlite3.Connection) -> None:
            deleted = connection.execute(
                "DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id)
            )
            if not deleted.rowcount:
                raise _missing(connection, "delete", namespace, container_id, container_id)

        await self._database.write(delete, deletes=True)


def _missing(
    connection: sqlite3.Connection,
    doing: str,
    namespace: str,
    container_id: str,
    shown: str,
) -> NotFound:
    """containerd has another text where the namespace never had a container."""
    if connection.execute("SELECT 1 FROM namespaces WHERE name = ?", (namespace,)).fetchone():
        return NotFound(f"container {shown}")
    return NotFound(f'cannot {doing} container "{container_id}" in namespace "{namespace}"')


def _check_immutable(current: Container, container: Container) -> None:
    if current.snapshotter != container.snapshotter:
        raise InvalidArgument("container.Snapshotter field is immutable")
    if current.runtime_name != container.runtime_name:
        raise InvalidArgument("container.Runtime.Name field is immutable")


def _with_field(target: Container, path: str, source: Container) -> Container:
    """`target` with the field at `path` as it is in `source`."""
    name, dot, key = path.partition(".")
    match name, bool(dot):
        case "labels", True:
            return replace(target, labels={**target.labels, key: source.labels.get(key, "")})
        case "extensions", True:
            extension = source.extensions.get(key, TypedValue(""))
            return replace(target, extensions={**target.extensions, key: extension})
        case "labels", False:
            return replace(target, labels=source.labels)
        case "extensions", False:
            return replace(target, extensions=source.extensions)
        case "spec", False:
            return replace(target, spec=source.spec)
        case "image", False:
            return replace(target, image=source.image)
        case "snapshotkey", False:
            return replace(target, snapshot_key=source.snapshot_key)
        case _:
            raise InvalidArgument(f'cannot update "{path}" field on "{source.id}"')


def _validate(container: Container) -> None:
    try:
        identifiers.validate(container.id)
    except InvalidArgument as error:
        raise error.within("container.ID") from None
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length")
    try:
        labels_.validate(container.labels)
    except InvalidArgument as error:
        raise error.within("containers.Labels") from None
    if not container.runtime_name:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def _without_empty_labels(container: Container) -> Container:
    return replace(container, labels={k: v for k, v in container.labels.items() if v})


def _lookup(container: Container, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``metadata/adaptors.go``)."""
    match fieldpath:
        case ["id", *_]:
            value = container.id
        case ["runtime", "name", *_]:
            value = container.runtime_name
        case ["image", *_]:
            value = container.image
        case ["labels", *key]:
            return labels_.lookup(container.labels, key)
        case _:
            value = ""
    return value, bool(value)


def _to_row(container: Container) -> Row:
    try:
        labels = labels_.dump(container.labels)
    except TaskdError as error:
        raise error.within(f'failed to write container "{container.id}"') from None
    spec, options = container.spec, container.runtime_options
    return (
        container.id,
        labels,
        container.image,
        container.runtime_name,
        options and options.type_url,
        options and options.value,
        spec and spec.type_url,
        spec and spec.value,
        container.snapshotter,
        container.snapshot_key,
        container.created_at,
        container.updated_at,
        extensions_.dump(container.extensions),
        container.sandbox_id,
    )


def _from_row(row: Row) -> Container:
    (
        id_, labels, image, runtime_name, options_type, options, spec_type, spec,
        snapshotter, snapshot_key, created_at, updated_at, extensions, sandbox_id,
    ) = row  # fmt: skip
    return Container(
        id_,
        labels_.load(labels),
        image,
        runtime_name,
        None if options_type is None else TypedValue(options_type, options),
        None if spec_type is None else TypedValue(spec_type, spec),
        snapshotter,
        snapshot_key,
        created_at,
        updated_at,
        extensions_.load(extensions),
        sandbox_id,
    )
