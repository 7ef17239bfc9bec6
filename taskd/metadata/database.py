"""The SQLite file below the stores: opening, schema, reading and writing."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import anyio
from anyio import to_thread

from taskd.errors import TaskdError
from taskd.sqlite import FAILURES, Row, SqliteFile, Transaction, impatient, open_log

__all__ = ["Database", "Row"]

log = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_SECONDS = 1.0
"""Without a change, after which SQLite's log is emptied."""

# One script a version, never edited once released: what is new is appended.
_MIGRATIONS = (
    """
    CREATE TABLE namespaces (
        name TEXT PRIMARY KEY,
        labels TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;

    CREATE TABLE containers (
        namespace TEXT NOT NULL REFERENCES namespaces (name),
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        image TEXT NOT NULL,
        runtime_name TEXT NOT NULL,
        runtime_options_type TEXT,
        runtime_options_value BLOB,
        spec_type TEXT,
        spec_value BLOB,
        snapshotter TEXT NOT NULL,
        snapshot_key TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        extensions TEXT NOT NULL,
        sandbox_id TEXT NOT NULL,
        PRIMARY KEY (namespace, id)
    );

    CREATE TABLE leases (
        namespace TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
        id TEXT NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;

    CREATE TABLE lease_resources (
        namespace TEXT NOT NULL,
        lease TEXT NOT NULL,
        type TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (namespace, lease, type, id),
        FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE images (
        namespace TEXT NOT NULL REFERENCES namespaces (name),
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        media_type TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        annotations TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;

    CREATE TABLE blobs (
        namespace TEXT NOT NULL REFERENCES namespaces (name),
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID;

    CREATE INDEX blobs_by_digest ON blobs (digest);

    CREATE TABLE ingests (
        namespace TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
        ref TEXT NOT NULL,
        expected TEXT NOT NULL,
        expires_at INTEGER,
        PRIMARY KEY (namespace, ref)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE namespaces ADD COLUMN sandboxes INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE sandboxes (
        namespace TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
        id TEXT NOT NULL,
        runtime_name TEXT NOT NULL,
        runtime_options_type TEXT,
        runtime_options_value BLOB,
        spec_type TEXT,
        spec_value BLOB,
        labels TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        extensions TEXT NOT NULL,
        sandboxer TEXT NOT NULL,
        PRIMARY KEY (namespace, id)
    );
    """,
    # A number is never given out again: it is the name of a folder, which may be mounted yet.
    """
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL REFERENCES namespaces (name),
        snapshotter TEXT NOT NULL,
        name TEXT NOT NULL,
        kind INTEGER NOT NULL,
        parent INTEGER REFERENCES snapshots (id),
        labels TEXT NOT NULL,
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, snapshotter, name)
    );

    CREATE INDEX snapshots_by_parent ON snapshots (parent);
    """,
    """
    CREATE TABLE activations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        lease TEXT NOT NULL,
        done TEXT NOT NULL,
        UNIQUE (namespace, name)
    );
    """,
)


class Database:
    """The metadata file, open for one reader (the event loop) and one writer (a worker thread)."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is created where there is none, and bring its schema up to date.

        Blocks on the disk, so belongs before the first call is served. Raises `DataLoss` for a
        file that is damaged or no SQLite database, `FailedPrecondition` for one that cannot be
        opened or that a newer taskd has written.
        """
        self.path = path
        self._file = SqliteFile(path, "metadata database", "full")
        self._changes = 0
        self._changed = anyio.Event()
        self._changed.set()  # an earlier daemon may have left a log
        self._listeners: list[Callable[[bool], None]] = []
        self._limiter = anyio.CapacityLimiter(1)
        # A cancelled `write` gives its place in the limiter up while its thread still runs.
        self._writing = threading.Lock()
        self._writer = self._file.connect()
        try:
            self._file.prepare(self._writer, _MIGRATIONS)
            self._reader = self._file.connect()
        except TaskdError:
            self._writer.close()
            raise
        self._reader.execute("PRAGMA query_only = ON")
        open_log(self._reader)
        # It belongs to the event loop, which waits for nobody.
        impatient(self._reader)
        if self._file.lost:
            log.error("metadata database %s: %s", path, self._file.lost)

    @property
    def fresh(self) -> bool:
        """There was none before this one."""
        return self._file.fresh

    def read(self, sql: str, parameters: Sequence[str | int | None] = ()) -> list[Row]:
        """All rows of one SELECT: always a consistent view, and no transaction stays open."""
        try:
            return self._reader.execute(sql, parameters).fetchall()
        except FAILURES as error:
            raise self._file.explained(error) from error

    async def write(self, work: Callable[[sqlite3.Connection], T], *, deletes: bool = False) -> T:
        """Run `work` as one transaction in a worker thread; what it changed is on disk on return.

        If `work` raises, nothing has changed. If the caller is cancelled meanwhile, the
        transaction is completed all the same. `deletes` says that something may now be garbage.
        """
        result = await self.maintain(work)
        for listener in self._listeners:
            listener(deletes)
        return result

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Have `listener` called in the event loop after each `write`, with its `deletes`."""
        self._listeners.append(listener)

    async def maintain(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `write`, for what no client has asked for; nobody is told of it."""
        try:
            return await to_thread.run_sync(self._transact, work, limiter=self._limiter)
        finally:
            self._changes += 1
            self._changed.set()

    async def keep_small(self) -> None:
        """Empty SQLite's log whenever nothing changes for a while, for ever.

        What is in it takes room, and is lost without it, or if it is damaged.
        """
        while True:
            await self._changed.wait()
            before = self._changes
            await anyio.sleep(IDLE_SECONDS)
            if self._changes == before:
                self._changed = anyio.Event()
                await to_thread.run_sync(self._empty_log, limiter=self._limiter)

    def _empty_log(self) -> None:
        with self._writing:
            try:
                self._file.checkpoint(self._writer, empty=True)
            except FAILURES as error:
                log.error("%s", self._file.explained(error))

    def close(self) -> None:
        """Close the file, after a transaction under way has ended."""
        self._reader.close()
        with self._writing:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._writing:
            try:
                with Transaction(self._writer) as connection:
                    return work(connection)
            except FAILURES as error:
                raise self._file.explained(error) from error
