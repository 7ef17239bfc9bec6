"""What SQLite knows of the store: which namespace has which blob, and what is being written.

Source: containerd's ``metadata/content.go``, for leases ``metadata/leases.go``. Functions that
take a connection are parts of a transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from taskd.content.files import Files
from taskd.metadata import labels as labels_
from taskd.metadata.database import Row

__all__ = [
    "SELECT_INFO",
    "SELECT_INFOS",
    "Info",
    "begin",
    "end",
    "expired",
    "has",
    "info",
    "key",
    "remove_unused",
    "used",
]

SELECT_INFOS = "SELECT digest, size, labels, created_at, updated_at FROM blobs WHERE namespace = ?"
SELECT_INFO = f"{SELECT_INFOS} AND digest = ?"

_USED = (
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM blobs WHERE digest = ?1) "
    "OR EXISTS (SELECT 1 FROM ingests WHERE expected = ?1)"
)


@dataclass(frozen=True, slots=True)
class Info:
    """What a namespace knows of a blob. `size` is in bytes, times in ns since the epoch."""

    digest: str
    size: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def info(row: Row) -> Info:
    digest, size, labels, created_at, updated_at = row
    return Info(digest, size, labels_.load(labels), created_at, updated_at)


def key(namespace: str, ref: str) -> str:
    """The name of a write among those of all namespaces, as containerd has it."""
    return f"{namespace}/1/{ref}"


def has(connection: sqlite3.Connection, namespace: str, digest: str) -> bool:
    return connection.execute(SELECT_INFO, (namespace, digest)).fetchone() is not None


def used(connection: sqlite3.Connection) -> Set[str]:
    """The digests of the blobs that any namespace has, or is about to."""
    rows = connection.execute("SELECT digest FROM blobs UNION SELECT expected FROM ingests")
    return {digest for (digest,) in rows}


def remove_unused(files: Files, digest: str, connection: sqlite3.Connection) -> None:
    """Remove the blob's file if no namespace has the blob, nor is about to.

    It goes in a transaction after the one that ended its use: should that one not be committed,
    there must be a file still. And in a transaction, so that nobody begins to use it meanwhile.
    """
    if not connection.execute(_USED, (digest,)).fetchone():
        files.remove(digest)


def begin(
    connection: sqlite3.Connection, namespace: str, ref: str, expected: str, expires_at: int | None
) -> None:
    """Note a write down. One begun before keeps what it expects, and when it ends, if not given."""
    connection.execute(
        "INSERT INTO ingests (namespace, ref, expected, expires_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (namespace, ref) DO UPDATE SET "
        "expected = iif(excluded.expected = '', expected, excluded.expected), "
        "expires_at = coalesce(excluded.expires_at, expires_at)",
        (namespace, ref, expected, expires_at),
    )


def end(connection: sqlite3.Connection, namespace: str, ref: str) -> str | None:
    """Forget a write; returns what it expected, None if there is no such write."""
    row = connection.execute(
        "DELETE FROM ingests WHERE namespace = ? AND ref = ? RETURNING expected", (namespace, ref)
    ).fetchone()
    return None if row is None else str(row[0])


def expired(
    select: Callable[[str, Sequence[int]], Iterable[Row]], now: int, active: Set[str]
) -> Sequence[tuple[str, str]]:
    """Namespace and ref of the writes that may go at `now` (ns since the epoch).

    No lease holds those, their time has passed, and they are not under way.
    """
    rows = select(
        "SELECT namespace, ref FROM ingests AS ingest WHERE coalesce(expires_at, 0) < ? "
        "AND NOT EXISTS (SELECT 1 FROM lease_resources AS resource WHERE type = 'ingests' "
        "AND resource.namespace = ingest.namespace AND resource.id = ingest.ref)",
        (now,),
    )
    return [(namespace, ref) for namespace, ref in rows if key(namespace, ref) not in active]
