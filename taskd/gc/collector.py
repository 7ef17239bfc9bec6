"""One collection: from what is kept for its own sake to all that this refers to; the rest goes.

Source: containerd's ``metadata/gc.go`` and ``metadata/db.go``. There, writers are locked out from
the first mark to the last removal of a record. Here both are one transaction, which comes to the
same thing: what was committed before it is seen, what is committed later finds things as they
are then. Reading goes on, and so do transfers of content, whose bytes are not in the database.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Set

from taskd.clock import Clock
from taskd.content import ContentStore
from taskd.content import records as writes
from taskd.metadata import Database, leases

__all__ = ["Collector", "remove"]

_log = logging.getLogger(__name__)

# A label refers to content by its name, which anything may follow after a dot or a slash.
_REFERS = (
    "(label.key = 'containerd.io/gc.ref.content' "
    "OR label.key GLOB 'containerd.io/gc.ref.content[./]*')"
)

# The query planner must not begin with the table of all blobs, hence CROSS JOIN; nor does it
# search a recursive table by an index, hence EXCEPT.
_REMOVE_BLOBS = f"""
    WITH RECURSIVE marked (namespace, digest, flat) AS (
        SELECT namespace, digest, 0 FROM images
        UNION
        SELECT namespace, label.value, 0 FROM images, json_each(labels) AS label WHERE {_REFERS}
        UNION
        SELECT namespace, label.value, 0 FROM containers, json_each(labels) AS label
            WHERE {_REFERS}
        UNION
        SELECT namespace, label.value, 0 FROM sandboxes, json_each(labels) AS label
            WHERE {_REFERS}
        UNION
        SELECT resource.namespace, resource.id,
                json_extract(lease.labels, '$."containerd.io/gc.flat"') IS NOT NULL
            FROM lease_resources AS resource JOIN leases AS lease
            ON lease.namespace = resource.namespace AND lease.id = resource.lease
            WHERE resource.type = 'content'
        UNION
        SELECT namespace, expected, 0 FROM ingests WHERE expected <> ''
        UNION
        SELECT namespace, digest, 0 FROM blobs
            WHERE json_extract(labels, '$."containerd.io/gc.root"') IS NOT NULL
        UNION
        SELECT marked.namespace, label.value, 0
            FROM marked
            CROSS JOIN blobs ON blobs.namespace = marked.namespace AND blobs.digest = marked.digest
            CROSS JOIN json_each(blobs.labels) AS label
            WHERE NOT marked.flat AND {_REFERS}
    )
    DELETE FROM blobs WHERE (namespace, digest) IN (
        SELECT namespace, digest FROM blobs EXCEPT SELECT namespace, digest FROM marked
    )
    RETURNING namespace, digest
"""  # noqa: S608 - constants only


class Collector:
    def __init__(
        self, database: Database, content: ContentStore, clock: Clock | None = None
    ) -> None:
        """`clock` is what leases and writes expire by."""
        self._database = database
        self._content = content
        self._clock = clock or Clock()

    async def collect(self) -> float:
        """Remove the garbage of all namespaces, and on return the files that it had.

        No events tell of it, as in containerd. Returns for how many seconds other writers of
        metadata were held up. Raises OSError and what the database does.
        """
        now, active = self._clock.now(), self._content.active

        def timed(connection: sqlite3.Connection) -> float:
            before = time.perf_counter()
            remove(connection, now, active)
            return time.perf_counter() - before

        held = await self._database.maintain(timed)
        await self._content.sweep()
        return held

    def overdue(self) -> bool:
        """Whether a lease or a write has expired, which no change tells of."""
        now = self._clock.now()
        return bool(
            leases.expired(self._database.read, now)
            or writes.expired(self._database.read, now, self._content.active)
        )


def remove(connection: sqlite3.Connection, now: int, active: Set[str]) -> None:
    """Remove the records of what is garbage at `now` (ns since the epoch), as a transaction.

    Leases and writes first, as nothing refers to them and what is left of them refers to blobs.
    `active` has the keys of the writes that are under way, which stay.
    """
    for namespace, lease in leases.expired(connection.execute, now):
        leases.remove(connection, namespace, lease)
        _log.info("lease %s/%s has expired", namespace, lease)
    for namespace, ref in writes.expired(connection.execute, now, active):
        writes.end(connection, namespace, ref)
        _log.debug("write %s/%s is removed", namespace, ref)
    for namespace, digest in connection.execute(_REMOVE_BLOBS).fetchall():
        _log.debug("content %s/%s is removed", namespace, digest)
