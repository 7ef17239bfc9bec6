"""The durable journal: every event, in the order in which taskd learnt of it.

One SQLite file. Events are numbered from 1 without gaps, and a number is never used again. What
`append` has returned survives the end of the daemon, and in sync mode "full" a power cut; a commit
that was cut short is undone when the file is opened.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

import anyio
import anyio.lowlevel
from anyio import to_thread

from taskd.errors import TaskdError
from taskd.events import ledger
from taskd.events.envelope import Envelope
from taskd.events.ledger import Process
from taskd.sqlite import Row, SqliteFile, Transaction
from taskd.types import TypedValue

__all__ = ["Entry", "Journal", "Retention"]

log = logging.getLogger(__name__)

_MIGRATIONS = (
    """
    CREATE TABLE journal (id TEXT NOT NULL);

    CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        recorded INTEGER NOT NULL,
        seconds INTEGER NOT NULL,  -- when it happened; as nanoseconds, some are too large
        nanos INTEGER NOT NULL,
        namespace TEXT NOT NULL,
        topic TEXT NOT NULL,
        type_url TEXT,
        value BLOB,
        fingerprint INTEGER
    );

    CREATE INDEX events_by_fingerprint ON events (fingerprint) WHERE fingerprint IS NOT NULL;

    CREATE TABLE cursors (
        name TEXT PRIMARY KEY,
        position INTEGER NOT NULL
    ) WITHOUT ROWID;
    """
    + ledger.SCHEMA,
)

MAINTENANCE_SECONDS = 2.0

_FORGET_SECONDS = 60.0

_COMMITS_IN_LOG = 1000
"""Commits after which the next one waits for a checkpoint, so that the log stays small."""
_PRUNED_AT_ONCE = 500
"""Events removed in one transaction; calls are served between two."""


@dataclass(frozen=True, slots=True)
class Entry:
    position: int
    envelope: Envelope


@dataclass(frozen=True)
class Retention:
    """How much of the past is kept."""

    max_age: float = 7 * 24 * 3600.0
    """Seconds. Older events are kept while a cursor, such as that of NATS, has not passed them."""
    max_bytes: int = 256 * 2**20
    """Of the file. Beyond it the oldest events go, whoever has not read them."""


class _Item:
    """An event on its way into the journal."""

    def __init__(self, envelope: Envelope, shims: bool, first_hand: bool) -> None:
        self.envelope = envelope
        self.shims = shims
        self.first_hand = first_hand
        self.entry: Entry | None = None
        self.error: TaskdError | None = None
        self.done = False


class Journal:
    """Use it in ``with``; `maintain` is to run beside it. It belongs to one event loop."""

    def __init__(
        self,
        path: Path,
        sync: Literal["full", "normal"] = "normal",
        retention: Retention | None = None,
    ) -> None:
        """Open the file, which is made where there is none.

        Blocks on the disk. Raises `DataLoss` for a damaged file, `FailedPrecondition` for one that
        cannot be used.
        """
        self._path = path
        self._sync = sync
        self._retention = retention or Retention()
        self._file = SqliteFile(path, "journal", sync)
        self._committed: list[Callable[[Entry], None]] = []
        self._waiting: list[_Item] = []
        self._commits = 0
        self._forgotten = time.monotonic()
        self._lock = asyncio.Lock()
        self.repeats = 0
        """How many events were left out since the start, as it had them already."""
        self.id = ""
        """Names this journal; another one, made after this was removed, has another id."""
        self.last = 0
        """Position of the newest event; 0 if there has been none."""
        self._recorded = 0
        self._writer = self._file.connect()
        self._reader = self._file.connect()
        self._maintainer = self._file.connect()
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._file.explained(error) from error
            raise

    def _open(self) -> None:
        logged = _pages_in_log(self._path)
        self._file.prepare(self._writer, _MIGRATIONS)
        # A checkpoint waits for the disk; `maintain` does it, in a thread.
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        [(_, committed, _)] = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
        with Transaction(self._writer) as connection:
            if connection.execute("SELECT 1 FROM journal").fetchone() is None:
                connection.execute("INSERT INTO journal VALUES (?)", (str(uuid.uuid4()),))
            connection.execute(*ledger.forgetting(time.time_ns()))
        [(self.id,)] = self._writer.execute("SELECT id FROM journal")
        newest = self._writer.execute(
            "SELECT position, recorded FROM events ORDER BY position DESC LIMIT 1"
        ).fetchone()
        if newest is not None:
            self.last, self._recorded = newest
        if logged > max(committed, 0):
            log.warning(
                "journal %s: undone a commit of %d pages that was cut short; the last event is %d",
                *(self._path, logged - max(committed, 0), self.last),
            )

    @property
    def first(self) -> int:
        """Position of the oldest event that is kept; 1 if there has been none."""
        [(first,)] = self._reader.execute("SELECT min(position) FROM events")
        return first or 1

    def listen(self, committed: Callable[[Entry], None]) -> None:
        """Have each event handed to `committed`, in order, as soon as it is in the journal."""
        self._committed.append(committed)

    # --- writing --------------------------------------------------------------------------

    async def append(
        self, envelope: Envelope, *, shims: bool = False, first_hand: bool = False
    ) -> int | None:
        """Write an event; returns its position.

        `shims` marks an event that a shim has sent, `first_hand` one that tells of taskd's own
        dealings with a shim; of these, one that the journal has already is left out, and None is
        returned. Raises `ResourceExhausted` if the disk is full; then nothing is written.
        """
        item = _Item(envelope, shims, first_hand)
        self._waiting.append(item)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not item.done:
                    # What came while the last commit was on its way goes into one commit.
                    items, self._waiting = self._waiting, []
                    if self._sync == "full":
                        await to_thread.run_sync(self._write, items)
                    else:
                        # No disk is waited for: a thread would cost more.
                        self._write(items)
                    for one in items:
                        if one.entry is not None:
                            for committed in self._committed:
                                committed(one.entry)
                    self._commits += 1
                    if self._commits >= _COMMITS_IN_LOG:
                        await self._checkpoint()
        if item.error is not None:
            raise item.error
        return item.entry.position if item.entry is not None else None

    def _write(self, items: Sequence[_Item]) -> None:
        last, recorded, repeats = self.last, max(self._recorded, time.time_ns()), 0
        try:
            with Transaction(self._writer) as connection:
                for item in items:
                    fingerprint = None
                    if item.shims or item.first_hand:
                        step = ledger.record(
                            connection, item.envelope, recorded, first_hand=item.first_hand
                        )
                        if step is False:
                            repeats += 1
                            continue
                        if step is None and item.shims:
                            fingerprint = _fingerprint(item.envelope)
                            if _is_known(connection, fingerprint):
                                repeats += 1
                                continue
                    last += 1
                    _insert(connection, last, recorded, item.envelope, fingerprint)
                    item.entry = Entry(last, item.envelope)
        except sqlite3.Error as error:
            for item in items:
                item.entry = None
                item.error = self._file.explained(error)
        else:
            self.last, self._recorded = last, recorded
            self.repeats += repeats
        for item in items:
            item.done = True

    # --- reading --------------------------------------------------------------------------

    def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` events that follow a position, oldest first."""
        rows = self._reader.execute(
            "SELECT position, seconds, nanos, namespace, topic, type_url, value FROM events"
            " WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit),
        )
        return [_entry(row) for row in rows]

    def position_at(self, moment: int) -> int:
        """Position of the last event that the journal had at `moment`, ns since the epoch.

        0, or one less than `first`, if it had none of those that it has now.
        """
        before, after = self.first - 1, self.last + 1
        while after - before > 1:
            middle = (before + after) // 2
            [(recorded,)] = self._reader.execute(
                "SELECT recorded FROM events WHERE position = ?", (middle,)
            )
            before, after = (middle, after) if recorded < moment else (before, middle)
        return before

    def processes(self, namespace: str, container: str) -> list[Process]:
        """What has been told of the processes of a task that is not deleted, init first."""
        return ledger.processes(self._reader, namespace, container)

    def tasks(self) -> list[tuple[str, str]]:
        """Namespace and container of each task that has been created and not deleted."""
        return ledger.tasks(self._reader)

    async def retire(self, namespace: str, container: str, exec_id: str) -> None:
        """Note that an exec has been removed, so that another one may have its id.

        Raises `ResourceExhausted` if the disk is full.
        """
        async with self._lock:
            self._change(*ledger.retirement(namespace, container, exec_id, time.time_ns()))

    async def settle(self, namespace: str, container: str) -> None:
        """Note that a task has ended of which nothing was told, so that nothing will be.

        Raises `ResourceExhausted` if the disk is full.
        """
        async with self._lock:
            self._change(*ledger.settlement(namespace, container, time.time_ns()))

    # --- cursors --------------------------------------------------------------------------

    def cursor(self, name: str) -> int | None:
        """Position up to which a reader has gone; None if it has never said."""
        return self.cursors().get(name)

    def cursors(self) -> dict[str, int]:
        """Positions of all readers that have one."""
        return dict(self._reader.execute("SELECT name, position FROM cursors").fetchall())

    async def move_cursor(self, name: str, position: int) -> None:
        """Note how far a reader has gone: later events are kept for it, whatever their age.

        Raises `ResourceExhausted` if the disk is full.
        """
        async with self._lock:
            self._change(
                "INSERT INTO cursors VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET position = excluded.position",
                (name, position),
            )

    async def drop_cursor(self, name: str) -> None:
        """Keep nothing for a reader any more. Raises `ResourceExhausted` if the disk is full."""
        async with self._lock:
            self._change("DELETE FROM cursors WHERE name = ?", (name,))

    # --- upkeep ---------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Keep the file small, for ever: apply the retention, and empty the write-ahead log."""
        while True:
            await anyio.sleep(MAINTENANCE_SECONDS)
            try:
                await self.tidy()
            except TaskdError as exc:
                log.error("%s", exc)

    async def tidy(self) -> None:
        """Do once what `maintain` does. Raises `ResourceExhausted` if the disk is full."""
        if time.monotonic() > self._forgotten + _FORGET_SECONDS:
            self._forgotten = time.monotonic()
            async with self._lock:
                self._change(*ledger.forgetting(time.time_ns()))
        while await self._prune():
            await anyio.lowlevel.checkpoint()
        if self._commits:
            await self._checkpoint()

    async def _prune(self) -> bool:
        """Remove some of what the retention does not keep; whether there may be more."""
        [(passed,)] = self._reader.execute("SELECT min(position) FROM cursors")
        oldest = time.time_ns() - int(self._retention.max_age * 1e9)
        upto = self.position_at(oldest)
        if passed is not None:
            upto = min(upto, passed)
        if self.size > self._retention.max_bytes:
            upto = max(upto, self.first + _PRUNED_AT_ONCE - 1)
        # The newest stays, or its number would be given again.
        upto = min(upto, self.last - 1, self.first + _PRUNED_AT_ONCE - 1)
        if upto < self.first:
            return False
        if passed is not None and upto > passed:
            log.warning(
                "journal %s is too large: events up to %d go, though a cursor is at %d",
                *(self._path, upto, passed),
            )
        async with self._lock:
            self._change("DELETE FROM events WHERE position <= ?", (upto,))
            self._change("PRAGMA incremental_vacuum(256)")
        return True

    def _change(self, statement: str, values: tuple[object, ...] = ()) -> None:
        try:
            self._writer.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._file.explained(error) from error

    @property
    def size(self) -> int:
        """Bytes of the file that are in use."""
        [(size,)] = self._reader.execute(
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        return int(size)

    async def _checkpoint(self) -> None:
        """Move what has been committed from the log into the file, so that the log begins anew.

        While it waits for the disk, a full one too, the log goes on to serve.
        """
        self._commits = 0

        def checkpoint() -> None:
            self._maintainer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

        try:
            await to_thread.run_sync(checkpoint)
        except sqlite3.Error as error:
            log.error("%s", self._file.explained(error))

    def close(self) -> None:
        for connection in (self._maintainer, self._reader, self._writer):
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        self.close()


def _insert(
    connection: sqlite3.Connection,
    position: int,
    recorded: int,
    envelope: Envelope,
    fingerprint: int | None,
) -> None:
    event = envelope.event
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            position,
            recorded,
            *divmod(envelope.timestamp, 10**9),
            envelope.namespace,
            envelope.topic,
            event.type_url if event else None,
            event.value if event else None,
            fingerprint,
        ),
    )


def _entry(row: Row) -> Entry:
    position, seconds, nanos, namespace, topic, type_url, value = row
    event = TypedValue(type_url, value) if type_url is not None else None
    return Entry(position, Envelope(seconds * 10**9 + nanos, namespace, topic, event))


def _fingerprint(envelope: Envelope) -> int:
    """A number that the same event, sent again, has too: its time is to the nanosecond."""
    digest = blake2b(digest_size=8)
    for part in (envelope.namespace, envelope.topic, str(envelope.timestamp)):
        digest.update(part.encode() + b"\0")
    if envelope.event:
        digest.update(envelope.event.value)
    return int.from_bytes(digest.digest(), signed=True)


def _is_known(connection: sqlite3.Connection, fingerprint: int) -> bool:
    row = connection.execute("SELECT 1 FROM events WHERE fingerprint = ?", (fingerprint,))
    return row.fetchone() is not None


def _pages_in_log(path: Path) -> int:
    """Pages in the write-ahead log since it was last begun anew, whole and broken ones.

    Source: SQLite's file format, section 4, "The Write-Ahead Log".
    """
    try:
        data = path.with_name(f"{path.name}-wal").read_bytes()
    except FileNotFoundError:
        return 0
    if len(data) < 32:
        return 0
    page_size, salt = struct.unpack_from(">8xI4x8s", data)
    pages = 0
    for offset in range(32, len(data), 24 + page_size):
        if data[offset + 8 : offset + 16] != salt:
            break
        pages += 1
    return pages
