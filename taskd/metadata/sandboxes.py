"""Sandbox records. Source: containerd's ``metadata/sandbox.go``."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from taskd import identifiers
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, TaskdError, Unknown
from taskd.metadata import extensions as extensions_
from taskd.metadata import labels as labels_
from taskd.metadata.database import Database, Row
from taskd.metadata.namespaces import ensure
from taskd.types import TypedValue

__all__ = ["Sandbox", "SandboxStore"]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a client declared about an environment that containers share.

    `sandboxer` names the controller that makes it. Times are nanoseconds since the epoch, and the
    store's to set.
    """

    id: str
    runtime_name: str = ""
    runtime_options: TypedValue | None = None
    spec: TypedValue | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, TypedValue] = field(default_factory=dict)
    sandboxer: str = ""


_COLUMNS = (
    "id, runtime_name, runtime_options_type, runtime_options_value, spec_type, spec_value, labels, "
    "created_at, updated_at, extensions, sandboxer"
)
_SELECT = f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ?"  # noqa: S608 - constants only
_SELECT_ONE = f"{_SELECT} AND id = ?"
_PUT = (
    f"INSERT INTO sandboxes (namespace, {_COLUMNS}) VALUES (?{', ?' * 11}) "  # noqa: S608
    "ON CONFLICT (namespace, id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", "))
)

_REPLACEABLE = ("labels", "extensions", "spec", "runtime")


class SandboxStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        """The sandbox's record. Raises `NotFound`."""
        rows = self._database.read(_SELECT_ONE, (namespace, sandbox_id))
        if not rows:
            if not self._database.read(_USED, (namespace,)):
                raise _unused()
            raise _missing(sandbox_id)
        return _from_row(rows[0])

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Sandbox]:
        """The sandboxes that pass one of `filters`, by id.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await labels_.prepare_filters(filters)
        rows = self._database.read(f"{_SELECT} ORDER BY id", (namespace,))
        found = [_from_row(row) for row in rows]
        return [each for each in found if matches.match(functools.partial(_lookup, each))]

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Store a new record, and its namespace if that is new; returns it as stored.

        Raises `InvalidArgument` for a bad id, `AlreadyExists`, and, as containerd does, no better
        than `Unknown` for a label or an extension without a key.
        """
        try:
            identifiers.validate(sandbox.id)
        except InvalidArgument as error:
            raise error.within("failed to validate sandbox: invalid sandbox ID") from None
        now = time.time_ns()
        sandbox = replace(sandbox, created_at=now, updated_at=now)

        def insert(connection: sqlite3.Connection) -> Sandbox:
            ensure(connection, namespace)
            try:
                if connection.execute(_SELECT_ONE, (namespace, sandbox.id)).fetchone():
                    raise AlreadyExists(f'sandbox bucket "{sandbox.id}" already exists')
                row = _to_row(sandbox)
            except TaskdError as error:
                raise error.within("write error") from None
            connection.execute(_PUT, (namespace, *row))
            connection.execute("UPDATE namespaces SET sandboxes = 1 WHERE name = ?", (namespace,))
            return _from_row(row)

        return await self._database.write(insert)

    async def update(
        self, namespace: str, sandbox: Sandbox, fieldpaths: Sequence[str] = ()
    ) -> Sandbox:
        """Change the fields that `fieldpaths` name, or all that may change; returns the result.

        Paths are ``labels``, ``labels.<key>``, ``extensions``, ``extensions.<key>``, ``spec`` and
        ``runtime``. As in containerd, extensions, a spec, and options of the runtime that are left
        out of a replacement stay in the store, though not in the result. Raises `InvalidArgument`,
        `NotFound`, and `Unknown` as `create`.
        """

        def update(connection: sqlite3.Connection) -> Sandbox:
            row = connection.execute(_SELECT_ONE, (namespace, sandbox.id)).fetchone()
            if row is None:
                _refuse_unused(connection, namespace)
                raise _missing(sandbox.id)
            current = _from_row(row)
            if not fieldpaths and current.runtime_name != sandbox.runtime_name:
                raise InvalidArgument("sandbox.Runtime.Name field is immutable")
            updated = current
            for path in fieldpaths or _REPLACEABLE:
                updated = _with_field(updated, path, sandbox)
            updated = replace(
                updated,
                labels={key: value for key, value in updated.labels.items() if value or not key},
                updated_at=time.time_ns(),
            )
            stored = replace(
                updated,
                runtime_options=updated.runtime_options or current.runtime_options,
                spec=updated.spec or current.spec,
                extensions={**current.extensions, **updated.extensions},
            )
            connection.execute(_PUT, (namespace, *_to_row(stored)))
            return updated

        return await self._database.write(update)

    async def delete(self, namespace: str, sandbox_id: str) -> None:
        """Delete a record; whether a process of it is left is not asked here. Raises `NotFound`."""

        def delete(connection: sqlite3.Connection) -> None:
            deleted = connection.execute(
                "DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox_id)
            )
            if not deleted.rowcount:
                _refuse_unused(connection, namespace)
                raise NotFound(f'failed to delete sandbox "{sandbox_id}"')

        await self._database.write(delete, deletes=True)


# containerd has another text where the namespace never had a sandbox.
_USED = "SELECT 1 FROM namespaces WHERE name = ? AND sandboxes"


def _refuse_unused(connection: sqlite3.Connection, namespace: str) -> None:
    if not connection.execute(_USED, (namespace,)).fetchone():
        raise _unused()


def _unused() -> NotFound:
    return NotFound("no sandbox buckets")


def _missing(sandbox_id: str) -> NotFound:
    return NotFound(f'bucket "{sandbox_id}" not found: not found', verbatim=True)


def _with_field(target: Sandbox, path: str, source: Sandbox) -> Sandbox:
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
        case "runtime", False:
            return replace(
                target, runtime_name=source.runtime_name, runtime_options=source.runtime_options
            )
        case "spec", False:
            return replace(target, spec=source.spec)
        case _:
            raise InvalidArgument(f'cannot update "{path}" field on sandbox "{source.id}"')


def _lookup(sandbox: Sandbox, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``metadata/adaptors.go``)."""
    match fieldpath:
        case ["id", *_]:
            return sandbox.id, True
        case ["labels", *key]:
            return labels_.lookup(sandbox.labels, key)
        case _:
            return "", False


def _to_row(sandbox: Sandbox) -> Row:
    labels = labels_.dump(sandbox.labels)
    if "" in sandbox.extensions:
        raise Unknown("key required")
    spec, options = sandbox.spec, sandbox.runtime_options
    return (
        sandbox.id,
        sandbox.runtime_name,
        options and options.type_url,
        options and options.value,
        spec and spec.type_url,
        spec and spec.value,
        labels,
        sandbox.created_at,
        sandbox.updated_at,
        extensions_.dump(sandbox.extensions),
        sandbox.sandboxer,
    )


def _from_row(row: Row) -> Sandbox:
    (
        id_, runtime_name, options_type, options, spec_type, spec,
        labels, created_at, updated_at, extensions, sandboxer,
    ) = row  # fmt: skip
    return Sandbox(
        id_,
        runtime_name,
        None if options_type is None else TypedValue(options_type, options),
        None if spec_type is None else TypedValue(spec_type, spec),
        labels_.load(labels),
        created_at,
        updated_at,
        extensions_.load(extensions),
        sandboxer,
    )
