"""Namespaces. Source: containerd's ``metadata/namespaces.go``."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskd import identifiers
from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from taskd.metadata import labels as labels_
from taskd.metadata.database import Database

__all__ = ["Namespace", "NamespaceStore", "ensure"]

# What keeps a namespace from being deleted, in the order in which containerd lists it.
_OCCUPANTS = (
    "SELECT 'images' FROM images WHERE namespace = ? LIMIT 1",
    "SELECT 'blobs' FROM blobs WHERE namespace = ? LIMIT 1",
    "SELECT 'containers' FROM containers WHERE namespace = ? LIMIT 1",
    "SELECT DISTINCT 'snapshots on \"' || snapshotter || '\" snapshotter' "
    "FROM snapshots WHERE namespace = ? ORDER BY snapshotter",
)


class Namespace(NamedTuple):
    name: str
    labels: Mapping[str, str]


class NamespaceStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a namespace; none for one that does not exist, which is no error."""
        rows = self._database.read("SELECT labels FROM namespaces WHERE name = ?", (name,))
        return labels_.load(rows[0][0]) if rows else {}

    def list(self) -> Sequence[Namespace]:
        """All namespaces, by name, with those that came about by what was created in them."""
        rows = self._database.read("SELECT name, labels FROM namespaces ORDER BY name")
        return [Namespace(name, labels_.load(stored)) for name, stored in rows]

    async def create(self, name: str, labels: Mapping[str, str]) -> Namespace:
        """Raises `InvalidArgument` for a bad name or label, `AlreadyExists`."""
        identifiers.validate(name)
        _validate(labels)
        stored = _dump(labels)

        def insert(connection: sqlite3.Connection) -> None:
            if _labels(connection, name) is not None:
                raise AlreadyExists(f'namespace "{name}"')
            _put(connection, name, stored)

        await self._database.write(insert)
        return Namespace(name, labels_.load(stored))

    async def update(
        self, name: str, labels: Mapping[str, str], fieldpaths: Sequence[str] = ()
    ) -> None:
        """Replace all labels, or only those that `fieldpaths` (``labels.<key>``) name.

        A namespace that does not exist is created if it is given a label. Raises
        `InvalidArgument` for any other path and for a bad name, and, as containerd does, no
        better than `Unknown` for a bad label.
        """
        for path in fieldpaths:
            if not path.startswith("labels."):
                raise InvalidArgument(f'cannot update "{path}" field', verbatim=True)
        keys = [path.removeprefix("labels.") for path in fieldpaths]
        changes = {key: labels.get(key, "") for key in keys} if keys else dict(labels)
        if any(changes.values()):
            identifiers.validate(name)
        try:
            _validate(changes)
        except InvalidArgument as error:
            raise Unknown(error.message) from None

        def update(connection: sqlite3.Connection) -> None:
            current = _labels(connection, name)
            stored = _dump({**current, **changes} if keys and current else changes)
            if current is not None or stored != _dump({}):
                _put(connection, name, stored)

        await self._database.write(update)

    async def delete(self, name: str) -> None:
        """Delete a namespace, its sandboxes, its leases and its unfinished writes.

        Raises `NotFound`, and `FailedPrecondition` naming what the namespace still has.
        """

        def delete(connection: sqlite3.Connection) -> None:
            left = [kind for sql in _OCCUPANTS for (kind,) in connection.execute(sql, (name,))]
            if left:
                raise FailedPrecondition(
                    f'namespace "{name}" must be empty, but it still has {", ".join(left)}'
                )
            if not connection.execute("DELETE FROM namespaces WHERE name = ?", (name,)).rowcount:
                raise NotFound(f'namespace "{name}"')

        await self._database.write(delete, deletes=True)


def ensure(connection: sqlite3.Connection, name: str) -> None:
    """Create the namespace if there is none: containerd does so for whatever goes into it."""
    connection.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))


def _labels(connection: sqlite3.Connection, name: str) -> dict[str, str] | None:
    row = connection.execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
    return None if row is None else labels_.load(row[0])


def _put(connection: sqlite3.Connection, name: str, stored: str) -> None:
    ensure(connection, name)
    connection.execute("UPDATE namespaces SET labels = ? WHERE name = ?", (stored, name))


def _validate(labels: Mapping[str, str]) -> None:
    try:
        labels_.validate(labels)
    except InvalidArgument as error:
        raise error.within("namespace.Labels") from None


def _dump(labels: Mapping[str, str]) -> str:
    if labels.get(""):
        raise Unknown("key required")
    return labels_.dump(labels)
