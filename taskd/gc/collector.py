"""One collection: from what is kept for its own sake to all that this refers to; the rest goes.

Source: containerd's ``metadata/db.go``. There, writers are locked out from the first mark to the
last removal of a record. Here both are one transaction, which comes to the same thing: what was
committed before it is seen, what is committed later finds things as they are then. Reading goes
on, and so do transfers of content and changes to files, which are not in the database.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence, Set

from taskd.activations import MountManager
from taskd.clock import Clock
from taskd.content import ContentStore
from taskd.content import records as writes
from taskd.gc.marking import Node, garbage
from taskd.metadata import Database, leases
from taskd.snapshots import Snapshotter

__all__ = ["Collector", "remove"]

_log = logging.getLogger(__name__)


class Collector:
    def __init__(
        self,
        database: Database,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter] | None = None,
        mounts: MountManager | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`snapshotters` are by name; `clock` is what leases and writes expire by."""
        self._database = database
        self._content = content
        self._snapshotters = snapshotters or {}
        self._mounts = mounts
        self._clock = clock or Clock()

    async def collect(self) -> float:
        """Remove the garbage of all namespaces, and on return the files that it had.

        Events tell of snapshots, and of nothing else, as in containerd. Returns for how many
        seconds other writers of metadata were held up. Raises OSError and what the database does.
        """
        now, active = self._clock.now(), self._content.active

        def timed(connection: sqlite3.Connection) -> tuple[Sequence[Node], float]:
            before = time.perf_counter()
            making = self._mounts.making if self._mounts else frozenset()
            removed = remove(connection, now, active, making)
            return removed, time.perf_counter() - before

        removed, held = await self._database.maintain(timed)
        await self._content.sweep()
        for namespace, kind, key in removed:
            if kind == "mounts" and self._mounts:
                self._mounts.collected()
            elif snapshotter := self._snapshotters.get(kind.removeprefix("snapshots/")):
                await snapshotter.removed(namespace, key)
        for each in self._snapshotters.values():
            await each.sweep()
        if self._mounts:
            await self._mounts.sweep()
        return held

    def overdue(self) -> bool:
        """Whether a lease or a write has expired, which no change tells of."""
        now = self._clock.now()
        return bool(
            leases.expired(self._database.read, now)
            or writes.expired(self._database.read, now, self._content.active)
        )


def remove(
    connection: sqlite3.Connection,
    now: int,
    active: Set[str],
    making: Set[tuple[str, str]] = frozenset(),
) -> Sequence[Node]:
    """Remove the records of what is garbage at `now` (ns since the epoch), as a transaction.

    Leases and writes first, as nothing refers to them and what is left of them refers to blobs.
    `active` has the keys of the writes that are under way, which stay, `making` namespace and name
    of activations that are. Returns the blobs, snapshots and activations.
    """
    for namespace, lease in leases.expired(connection.execute, now):
        leases.remove(connection, namespace, lease)
        _log.info("lease %s/%s has expired", namespace, lease)
    for namespace, ref in writes.expired(connection.execute, now, active):
        writes.end(connection, namespace, ref)
        _log.debug("write %s/%s is removed", namespace, ref)
    # A snapshot goes with those that are on it, in whatever order.
    connection.execute("PRAGMA defer_foreign_keys = ON")
    removed = [
        node
        for node in garbage(connection)
        if node.kind != "mounts" or (node.namespace, node.key) not in making
    ]
    for node in removed:
        match node.kind.split("/", 1):
            case ["content"]:
                connection.execute(
                    "DELETE FROM blobs WHERE namespace = ? AND digest = ?",
                    (node.namespace, node.key),
                )
            case ["mounts"]:
                connection.execute(
                    "DELETE FROM activations WHERE namespace = ? AND name = ?",
                    (node.namespace, node.key),
                )
            case ["snapshots", snapshotter]:
                connection.execute(
                    "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?",
                    (node.namespace, snapshotter, node.key),
                )
        _log.debug("%s %s/%s is removed", node.kind, node.namespace, node.key)
    return removed
