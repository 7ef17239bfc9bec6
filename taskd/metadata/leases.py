"""Leases, which keep resources from garbage collection. Source: containerd's
``metadata/leases.go``, for expiry ``metadata/gc.go``.
"""

from __future__ import annotations

import functools
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from taskd import digests
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown
from taskd.metadata import labels as labels_
from taskd.metadata.database import Database, Row
from taskd.metadata.namespaces import ensure

__all__ = [
    "EXPIRE_LABEL",
    "Lease",
    "LeaseStore",
    "Resource",
    "expired",
    "hold",
    "release",
    "remove",
]

EXPIRE_LABEL = "containerd.io/gc.expire"
"""Label whose value, a time of RFC 3339, says from when on a lease may be removed."""

_SELECT_EXPIRING = (
    "SELECT namespace, lease.id, label.value FROM leases AS lease, json_each(labels) AS label "
    "WHERE label.key = ?"
)

_log = logging.getLogger(__name__)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lease:
    """`created_at` is in nanoseconds since the epoch."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0


class Resource(NamedTuple):
    """Something that a lease holds; `type` is ``content``, ``ingests`` or ``snapshots/<name>``."""

    id: str
    type: str


class LeaseStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, namespace: str, lease_id: str, labels: Mapping[str, str]) -> Lease:
        """Store a new lease, and its namespace if that is new. Raises `AlreadyExists`."""
        if not lease_id:
            raise Unknown("lease id must be provided")
        stored = labels_.dump(labels)
        now = time.time_ns()

        def insert(connection: sqlite3.Connection) -> None:
            ensure(connection, namespace)
            if _exists(connection, namespace, lease_id):
                raise AlreadyExists(f'lease "{lease_id}"')
            connection.execute(
                "INSERT INTO leases (namespace, id, labels, created_at) VALUES (?, ?, ?, ?)",
                (namespace, lease_id, stored, now),
            )

        await self._database.write(insert)
        return Lease(lease_id, labels_.load(stored), now)

    async def delete(self, namespace: str, lease_id: str) -> None:
        """Delete a lease and its references. Raises `NotFound`."""

        def delete(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, lease_id)
            remove(connection, namespace, lease_id)

        await self._database.write(delete, deletes=True)

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Lease]:
        """The leases that pass one of `filters`, by id.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await labels_.prepare_filters(filters)
        rows = self._database.read(
            "SELECT id, labels, created_at FROM leases WHERE namespace = ? ORDER BY id",
            (namespace,),
        )
        leases = [Lease(id_, labels_.load(labels), created) for id_, labels, created in rows]
        return [lease for lease in leases if matches.match(functools.partial(_lookup, lease))]

    async def add_resource(self, namespace: str, lease_id: str, resource: Resource) -> None:
        """Let a lease hold a resource, which it may do already.

        Raises `NotFound`, `InvalidArgument`, and `Unimplemented` for a type that is none.
        """

        def add(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, lease_id)
            _validate(resource)
            if resource.type.endswith("/"):
                raise Unknown("bucket name required")
            if not resource.id:
                raise Unknown("key required")
            connection.execute(
                "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (namespace, lease_id, resource.type, resource.id),
            )

        await self._database.write(add)

    async def delete_resource(self, namespace: str, lease_id: str, resource: Resource) -> None:
        """Let a lease hold a resource no more, which it need not have. Raises as `add_resource`."""

        def delete(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, lease_id)
            _validate(resource)
            connection.execute(
                "DELETE FROM lease_resources "
                "WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
                (namespace, lease_id, resource.type, resource.id),
            )

        await self._database.write(delete, deletes=True)

    async def list_resources(self, namespace: str, lease_id: str) -> Sequence[Resource]:
        """What a lease holds, by type and id. Raises `NotFound`."""
        rows = self._database.read(
            "SELECT resource.id, resource.type FROM leases AS lease "
            "LEFT JOIN lease_resources AS resource "
            "ON resource.namespace = lease.namespace AND resource.lease = lease.id "
            "WHERE lease.namespace = ? AND lease.id = ? ORDER BY resource.type, resource.id",
            (namespace, lease_id),
        )
        if not rows:
            raise NotFound(f'lease "{lease_id}"')
        return [Resource(id_, type_) for id_, type_ in rows if type_ is not None]


def expired(
    select: Callable[[str, Sequence[str]], Iterable[Row]], now: int
) -> Sequence[tuple[str, str]]:
    """Namespace and id of the leases that expired before `now` (ns since the epoch)."""
    return [
        (namespace, id_)
        for namespace, id_, value in select(_SELECT_EXPIRING, (EXPIRE_LABEL,))
        if _expired(id_, value, now)
    ]


def remove(connection: sqlite3.Connection, namespace: str, lease_id: str) -> None:
    """Delete a lease and its references, if there is one, as a part of a transaction."""
    connection.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id))


def hold(
    connection: sqlite3.Connection, namespace: str, lease: str | None, type_: str, id_: str
) -> None:
    """Let the lease, if there is one, hold a resource. Raises `NotFound` for the lease."""
    if lease is None:
        return
    if not _exists(connection, namespace, lease):
        raise NotFound("lease does not exist")
    connection.execute(
        "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        (namespace, lease, type_, id_),
    )


def release(
    connection: sqlite3.Connection, namespace: str, lease: str | None, type_: str, id_: str
) -> None:
    """Let the lease, if there is one, hold a resource no more."""
    connection.execute(
        "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
        (namespace, lease, type_, id_),
    )


def _exists(connection: sqlite3.Connection, namespace: str, lease_id: str) -> bool:
    found = connection.execute(
        "SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id)
    )
    return found.fetchone() is not None


def _require(connection: sqlite3.Connection, namespace: str, lease_id: str) -> None:
    if not _exists(connection, namespace, lease_id):
        raise NotFound(f'lease "{lease_id}"')


def _expired(lease_id: str, value: str, now: int) -> bool:
    try:
        if not _TIME.fullmatch(value):
            raise ValueError("no time of RFC 3339")
        expires = datetime.fromisoformat(value)
    except ValueError as error:
        _log.info('ignoring invalid expiration value "%s" of lease %s: %s', value, lease_id, error)
        return False
    return expires.timestamp() < now / 1e9


def _lookup(lease: Lease, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``metadata/adaptors.go``)."""
    match fieldpath:
        case ["id", *_]:
            return lease.id, True
        case ["labels", *key]:
            return labels_.lookup(lease.labels, key)
        case _:
            return "", False


def _validate(resource: Resource) -> None:
    """containerd's ``parseLeaseResource``."""
    kind, *rest = resource.type.split("/")
    match kind, len(rest):
        case "content", 0:
            try:
                digests.validate(resource.id)
            except InvalidArgument as exc:
                words = f"invalid content resource id {resource.id}: {exc}"
                raise InvalidArgument(words) from None
        case ("ingests", 0) | ("snapshots", 1):
            pass
        case "content" | "ingests", _:
            raise InvalidArgument(f"invalid resource type {resource.type}")
        case "snapshots", _:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
        case _:
            raise Unimplemented(f"resource type {resource.type} not supported yet")
