"""What SQLite knows of snapshots.

Source: containerd's ``metadata/snapshot.go`` and ``snapshots/storage/bolt.go``. There, the names
of a namespace are in one database, and what a snapshotter knows of each under an inner name,
``NAMESPACE/NUMBER/NAME``, in another; here both are one record, and its number that of its folder.
Functions that take a connection are parts of a transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from taskd.metadata import labels as labels_
from taskd.metadata.database import Row
from taskd.snapshots.types import Info, Kind, Usage

__all__ = [
    "Record",
    "Select",
    "chain",
    "child",
    "commit",
    "find",
    "insert",
    "numbers",
    "remove",
    "set_labels",
    "some",
]

Select = Callable[[str, Sequence[Any]], Iterable[Row]]
"""Runs a SELECT: a database's `read`, or a connection's `execute` as a part of a transaction."""

_SELECT = (
    "SELECT snapshot.id, snapshot.namespace, snapshot.name, snapshot.kind, "
    "coalesce(parent.name, ''), snapshot.labels, snapshot.created_at, snapshot.updated_at, "
    "snapshot.size, snapshot.inodes "
    "FROM snapshots AS snapshot LEFT JOIN snapshots AS parent ON parent.id = snapshot.parent "
    "WHERE snapshot.namespace = ? AND snapshot.snapshotter = ?"
)

_CHAIN = """
    WITH RECURSIVE chain (id, parent, depth) AS (
        SELECT id, parent, 0 FROM snapshots WHERE id = ?
        UNION ALL
        SELECT above.id, above.parent, depth + 1
            FROM chain JOIN snapshots AS above ON above.id = chain.parent
    )
    SELECT id FROM chain WHERE depth > 0 ORDER BY depth
"""


class Record(NamedTuple):
    """`number` is that of its folder, which no other snapshot has had or will have."""

    number: int
    namespace: str
    info: Info
    usage: Usage
    """What was measured when it was committed."""

    @property
    def inner(self) -> str:
        """Its name among those of all namespaces, in messages."""
        return f"{self.namespace}/{self.number}/{self.info.name}"


def find(select: Select, namespace: str, snapshotter: str, name: str) -> Record | None:
    for row in select(f"{_SELECT} AND snapshot.name = ?", (namespace, snapshotter, name)):
        return _record(row)
    return None


def some(
    select: Select, namespace: str, snapshotter: str, after: str | None, limit: int
) -> Sequence[Record]:
    """At most `limit` snapshots, by name, of those whose names come `after` another's."""
    rows = select(
        f"{_SELECT} AND (?3 IS NULL OR snapshot.name > ?3) ORDER BY snapshot.name LIMIT ?4",
        (namespace, snapshotter, after, limit),
    )
    return [_record(row) for row in rows]


def chain(select: Select, number: int) -> Sequence[int]:
    """The numbers of a snapshot's parent, its parent's, and so on."""
    return [above for (above,) in select(_CHAIN, (number,))]


def child(connection: sqlite3.Connection, number: int) -> bool:
    """Whether the snapshot has one."""
    found = connection.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (number,))
    return found.fetchone() is not None


def numbers(select: Select, snapshotter: str) -> set[int]:
    """Those of all snapshots, in all namespaces."""
    rows = select("SELECT id FROM snapshots WHERE snapshotter = ?", (snapshotter,))
    return {number for (number,) in rows}


def insert(
    connection: sqlite3.Connection,
    namespace: str,
    snapshotter: str,
    name: str,
    kind: Kind,
    parent: Record | None,
    labels: str,
) -> int:
    """A new snapshot's number."""
    now = time.time_ns()
    cursor = connection.execute(
        "INSERT INTO snapshots "
        "(namespace, snapshotter, name, kind, parent, labels, created_at, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (namespace, snapshotter, name, kind, parent and parent.number, labels, now, now),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def commit(
    connection: sqlite3.Connection,
    number: int,
    name: str,
    parent: Record | None,
    labels: str,
    usage: Usage,
) -> None:
    """Under another name the active snapshot is a committed one; `parent`, if given, is new."""
    now = time.time_ns()
    connection.execute(
        "UPDATE snapshots SET name = ?, kind = ?, parent = coalesce(?, parent), labels = ?, "
        "size = ?, inodes = ?, created_at = ?, updated_at = ? WHERE id = ?",
        (
            name,
            Kind.COMMITTED,
            parent and parent.number,
            labels,
            usage.size,
            usage.inodes,
            now,
            now,
            number,
        ),
    )


def set_labels(connection: sqlite3.Connection, number: int, labels: str) -> int:
    """Returns when that was, in nanoseconds since the epoch."""
    now = time.time_ns()
    connection.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?", (labels, now, number)
    )
    return now


def remove(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("DELETE FROM snapshots WHERE id = ?", (number,))


def _record(row: Row) -> Record:
    number, namespace, name, kind, parent, labels, created_at, updated_at, size, inodes = row
    return Record(
        number,
        namespace,
        Info(name, Kind(kind), parent, labels_.load(labels), created_at, updated_at),
        Usage(size, inodes),
    )
