"""The durable journal: every event, in the order in which taskd learnt of it.

One SQLite file. Events are numbered from 1, and a number is never used again: there is a gap where
it is not known which were, after a power cut say (see `Mark`). What `append` has returned survives
the end of the daemon, and in sync mode "full" a power cut; a commit that was cut short is undone
when the file is opened.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio import to_thread

from taskd.clock import Clock
from taskd.errors import (
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    TaskdError,
    Unavailable,
    Unknown,
)
from taskd.events import ledger
from taskd.events.envelope import Envelope
from taskd.events.ledger import Process
from taskd.events.mark import Mark
from taskd.sqlite import (
    FAILURES,
    PATIENCE_SECONDS,
    Failure,
    Row,
    SqliteFile,
    Transaction,
    impatient,
    open_log,
)
from taskd.types import TypedValue

__all__ = ["Entry", "Journal", "Retention"]

log = logging.getLogger(__name__)

T = TypeVar("T")

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

_LOG_BYTES = 16 * 2**20
"""How far SQLite's log grows at most before the next event waits until it is emptied."""
_LOG_SHARE = 8
"""What part of the space that the journal may take is the log's, at most."""
_COMMIT_BYTES = 8 * 4096
"""More than most commits take in the log, besides what the event itself takes."""
_PRUNED_AT_ONCE = 500
"""Events removed in one transaction; calls are served between two."""
_VACUUMED_AT_ONCE = 256
"""Pages given back in one transaction."""
_BUSY_SECONDS = 0.02
"""Between two attempts to write what somebody else has locked."""


class Entry(NamedTuple):
    position: int
    envelope: Envelope


@dataclass(frozen=True)
class Retention:
    """How much of the past is kept."""

    max_age: float = 7 * 24 * 3600.0
    """Seconds. Older events are kept while a cursor, such as that of NATS, has not passed them."""
    max_bytes: int = 256 * 2**20
    """On the disk, with SQLite's log. Beyond it the oldest events go, whoever has not read them."""


class _Item:
    """An event on its way into the journal."""

    def __init__(self, envelope: Envelope, shims: bool, first_hand: bool) -> None:
        self.envelope = envelope
        self.shims = shims
        self.first_hand = first_hand
        self.entry: Entry | None = None
        self.error: Exception | None = None
        self.done = False


class Journal:
    """Use it in ``with``; `maintain` is to run beside it. It belongs to one event loop."""

    def __init__(
        self,
        path: Path,
        sync: Literal["full", "normal"] = "normal",
        retention: Retention | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Open the file, which is made where there is none, with its mark beside it.

        `clock` is what events age by. Blocks on the disk. Raises `DataLoss` for a damaged file,
        `FailedPrecondition` for one that cannot be used.
        """
        self._path = path
        self._sync = sync
        self._retention = retention or Retention()
        self._clock = clock or Clock()
        self._file = SqliteFile(path, "journal", sync)
        self._committed: list[Callable[[Entry], None]] = []
        self._waiting: list[_Item] = []
        self._log_limit = min(_LOG_BYTES, self._retention.max_bytes // _LOG_SHARE)
        self._relieve_at = self._log_limit
        self._room = 0
        self._changes = 0
        self._tidied = -1
        self._forgotten = time.monotonic()
        self._lock = asyncio.Lock()
        self.repeats = 0
        """How many events were left out since the start, as it had them already."""
        self.id = ""
        """Names this journal; another one, made after this was removed, has another id."""
        self.last = 0
        """The newest position that was given out; 0 if there has been none."""
        self._recorded = 0
        self._mark: Mark | None = None
        self._writer = self._file.connect()
        self._reader = self._file.connect()
        self._maintainer = self._file.connect()
        try:
            self._open()
        except BaseException as error:
            self._mark, mark = None, self._mark
            self.close()
            if mark is not None:
                mark.close(clean=False)
            if isinstance(error, (*FAILURES, OSError)):
                raise self._explained(error) from error
            raise

    def _open(self) -> None:
        self._file.prepare(self._writer, _MIGRATIONS)
        # A checkpoint waits for the disk; `maintain` does it, in a thread.
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        with Transaction(self._writer) as connection:
            if connection.execute("SELECT 1 FROM journal").fetchone() is None:
                connection.execute("INSERT INTO journal VALUES (?)", (str(uuid.uuid4()),))
            connection.execute(*ledger.forgetting(self._clock.now()))
        [(self.id,)] = self._writer.execute("SELECT id FROM journal")
        try:
            uuid.UUID(self.id)
        except (AttributeError, TypeError, ValueError):
            words = f"journal {self._path} is damaged: its id is {self.id!r}"
            raise DataLoss(words, verbatim=True) from None
        newest = self._writer.execute(
            "SELECT position, recorded FROM events ORDER BY position DESC LIMIT 1"
        ).fetchone()
        if newest is not None:
            self.last, self._recorded = newest
        if self._file.lost:
            log.error(
                "journal %s: %s; the last event is %d", *(self._path, self._file.lost, self.last)
            )
        self._mark = Mark(self._path.with_suffix(".mark"))
        self._continue(self._mark)
        for connection in (self._writer, self._reader, self._maintainer):
            open_log(connection)
            impatient(connection)

    def _continue(self, mark: Mark) -> None:
        """Go on after all numbers that may have been given out."""
        if earlier := mark.replaced(self.id):
            log.error(
                "journal %s is not the one that was here before, which had come to position %d: "
                "its file was emptied, removed or replaced, and what it had is lost",
                *(self._path, earlier),
            )
        used = mark.used(self.id, self.last)
        if used > self.last:
            log.error(
                "journal %s ends with event %d, but the numbers up to %d may have been given to "
                "events that are lost; it goes on after them",
                *(self._path, self.last, used),
            )
            self.last = used
        mark.begin(self.id, self.last)

    @property
    def first(self) -> int:
        """Position of the oldest event that is kept, or of the first to come.

        This, and all that reads, raises `Unavailable` if somebody else has the file locked, and
        what else SQLite has to say.
        """
        [(first,)] = self._select("SELECT min(position) FROM events")
        return int(first or self.last + 1)

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
        returned. If the event cannot be written this raises `ResourceExhausted` (the disk is full),
        `Unavailable` (somebody else has had the file locked for long), or what else there is to
        say; then nothing is written. All but `DataLoss` may pass.
        """
        item = _Item(envelope, shims, first_hand)
        self._waiting.append(item)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not item.done:
                    try:
                        # What comes at the same time goes into one commit, as does what came while
                        # the last one was on its way.
                        await asyncio.sleep(0)
                    finally:
                        items, self._waiting = self._waiting, []
                        await self._commit(items)
                    if self._log_is_full(items):
                        await self._relieve()
        if item.error is not None:
            raise item.error
        return item.entry.position if item.entry is not None else None

    async def _commit(self, items: Sequence[_Item]) -> None:
        """Write what several have sent, of whom none is to lose it because another has gone."""
        committing = asyncio.create_task(self._commit_whole(items))
        try:
            await asyncio.shield(committing)
        except asyncio.CancelledError:  # asyncio's own, which no scope keeps out
            await asyncio.wait([committing])
            raise

    async def _commit_whole(self, items: Sequence[_Item]) -> None:
        try:
            await self._reserve(len(items))
            await self._patiently(self._write, items)
        except Exception as error:
            for item in items:
                item.entry, item.error = None, error
        for item in items:
            item.done = True
            if item.entry is not None:
                for committed in self._committed:
                    committed(item.entry)

    async def _reserve(self, count: int) -> None:
        """Have the mark cover the next positions, for which the disk is waited for."""
        assert self._mark is not None
        if not self._mark.covers(self.last + count):
            try:
                await to_thread.run_sync(self._mark.begin, self.id, self.last, count)
            except OSError as error:
                raise self._explained(error) from error

    async def _patiently(self, work: Callable[[T], None], what: T) -> None:
        """Do what writes, for some seconds again and again while somebody else has the file locked.

        Whoever does without the journal goes on meanwhile. Raises as `append`.
        """
        until = 0.0
        while True:
            try:
                if self._sync == "full":
                    await to_thread.run_sync(work, what)
                else:
                    # No disk is waited for: a thread would cost more.
                    work(what)
            except (*FAILURES, OSError) as error:
                reason = self._explained(error)
                until = until or anyio.current_time() + PATIENCE_SECONDS
                if not isinstance(reason, Unavailable) or anyio.current_time() > until:
                    raise reason from error
                await anyio.sleep(_BUSY_SECONDS)
            else:
                self._changes += 1
                return

    def _write(self, items: Sequence[_Item]) -> None:
        try:
            self._insert(items)
        except sqlite3.IntegrityError:
            if not self._pass_strangers():
                raise
            self._insert(items)
        assert self._mark is not None
        try:
            self._mark.reach(self.last)
        except OSError as error:
            # They are written, and so are to be told.
            log.error("%s", self._explained(error))

    def _insert(self, items: Sequence[_Item]) -> None:
        last, recorded, repeats = self.last, max(self._recorded, time.time_ns()), 0
        with Transaction(self._writer) as connection:
            for item in items:
                item.entry, fingerprint = None, None
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
        self.last, self._recorded = last, recorded
        self.repeats += repeats

    def _pass_strangers(self) -> bool:
        """Go on after events that somebody else has written, if there are any."""
        [(newest,)] = self._writer.execute("SELECT max(position) FROM events")
        if newest is None or newest <= self.last:
            return False
        log.error(
            "journal %s: somebody else has written the events from %d to %d; "
            "is there another daemon with this root folder?",
            *(self._path, self.last + 1, newest),
        )
        self.last = newest
        return True

    async def begin_anew(self, used: int) -> None:
        """Take another id, and go on after position `used`.

        For a journal of which it turns out that it was rolled back, and that numbers which it has
        given out, or is about to, were others' before. Raises as `append`.
        """

        def rename(name: str) -> None:
            assert self._mark is not None
            self._execute([("UPDATE journal SET id = ?", (name,))])
            self.id, self.last = name, max(self.last, used)
            self._mark.begin(name, self.last)

        async with self._lock:
            await self._patiently(rename, str(uuid.uuid4()))

    # --- reading --------------------------------------------------------------------------

    def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` events that follow a position, oldest first."""
        rows = self._select(
            "SELECT position, seconds, nanos, namespace, topic, type_url, value FROM events"
            " WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit),
        )
        return [_entry(row) for row in rows]

    def _select(self, statement: str, values: tuple[object, ...] = ()) -> list[Row]:
        return self._reading(lambda: self._reader.execute(statement, values).fetchall())

    def _reading(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except FAILURES as error:
            raise self._file.explained(error) from error

    def position_at(self, moment: int) -> int:
        """Position of the last event that the journal had at `moment`, ns since the epoch.

        0, or one less than `first`, if it had none of those that it has now.
        """
        before, after = self.first - 1, self.last + 1
        while after - before > 1:
            middle = (before + after) // 2
            # Where there is a gap, the next one behind it.
            found = self._select(
                "SELECT position, recorded FROM events WHERE position >= ?"
                " ORDER BY position LIMIT 1",
                (middle,),
            )
            if found and found[0][1] < moment:
                before = found[0][0]
            else:
                after = middle
        return before

    def processes(self, namespace: str, container: str) -> list[Process]:
        """What has been told of the processes of a task that is not deleted, init first."""
        return self._reading(lambda: ledger.processes(self._reader, namespace, container))

    def tasks(self) -> list[tuple[str, str]]:
        """Namespace and container of each task that has been created and not deleted."""
        return self._reading(lambda: ledger.tasks(self._reader))

    async def retire(self, namespace: str, container: str, exec_id: str) -> None:
        """Note that an exec has been removed, so that another one may have its id.

        Raises as `append`.
        """
        await self._change(*ledger.retirement(namespace, container, exec_id, time.time_ns()))

    async def settle(self, namespace: str, container: str) -> None:
        """Note that a task has ended of which nothing was told, so that nothing will be.

        Raises as `append`.
        """
        await self._change(*ledger.settlement(namespace, container, time.time_ns()))

    # --- cursors --------------------------------------------------------------------------

    def cursor(self, name: str) -> int | None:
        """Position up to which a reader has gone; None if it has never said."""
        return self.cursors().get(name)

    def cursors(self) -> dict[str, int]:
        """Positions of all readers that have one."""
        return dict(self._select("SELECT name, position FROM cursors"))

    async def move_cursor(self, name: str, position: int) -> None:
        """Note how far a reader has gone: later events are kept for it, whatever their age.

        Raises as `append`.
        """
        await self._change(
            "INSERT INTO cursors VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET position = excluded.position",
            (name, position),
        )

    async def drop_cursor(self, name: str) -> None:
        """Keep nothing for a reader any more. Raises as `append`."""
        await self._change("DELETE FROM cursors WHERE name = ?", (name,))

    async def _change(self, statement: str, values: tuple[object, ...] = ()) -> None:
        async with self._lock:
            await self._patiently(self._execute, [(statement, values)])

    def _execute(self, statements: Iterable[tuple[str, tuple[object, ...]]]) -> None:
        with Transaction(self._writer) as connection:
            for statement, values in statements:
                connection.execute(statement, values).fetchall()

    # --- upkeep ---------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Keep the file small, for ever: apply the retention, and empty SQLite's log."""
        while True:
            await anyio.sleep(MAINTENANCE_SECONDS)
            try:
                await self.tidy()
            except TaskdError as exc:
                log.error("%s", exc)

    async def tidy(self) -> None:
        """Do once what `maintain` does. Raises as `append`."""
        if time.monotonic() > self._forgotten + _FORGET_SECONDS:
            self._forgotten = time.monotonic()
            await self._change(*ledger.forgetting(self._clock.now()))
        more = True
        while more:
            async with self._lock:
                more = await self._prune()
            await anyio.lowlevel.checkpoint()
        if self._changes == self._tidied:
            return
        before = self._changes
        await self._checkpoint(empty=False)
        async with self._lock:
            self._reading(self._pass_strangers)
            if self._changes == before:
                # Nothing has happened while all was moved: this waits for no disk.
                await self._empty_log()
                self._tidied = before

    def _log_is_full(self, items: Sequence[_Item]) -> bool:
        """Whether to `_relieve`; its size is asked for only when it may be."""
        self._room -= _COMMIT_BYTES
        for item in items:
            if item.entry is not None and (event := item.entry.envelope.event):
                self._room -= 2 * len(event.value)
        if self._room <= 0:
            self._room = self._relieve_at - self._file.log_bytes
        return self._room <= 0

    async def _relieve(self) -> None:
        """Give back what there is too much of, while who appends waits."""
        await self._empty_log()
        try:
            while await self._prune():
                await anyio.lowlevel.checkpoint()
        except TaskdError as exc:
            log.error("%s", exc)
        await self._empty_log()

    async def _prune(self) -> bool:
        """Give back some of what the retention does not keep; whether there may be more."""
        first, upto = self.first, self._removable()
        [(free,)] = self._select("PRAGMA freelist_count")
        if upto < first and not free:
            return False
        await self._patiently(
            self._execute,
            [
                ("DELETE FROM events WHERE position <= ?", (upto,)),
                (f"PRAGMA incremental_vacuum({_VACUUMED_AT_ONCE})", ()),
            ],
        )
        if self._file.log_bytes >= self._relieve_at:
            await self._empty_log()
        return upto >= first or self._select("PRAGMA freelist_count") != [(free,)]

    def _removable(self) -> int:
        """Up to which position events may go now, some at a time."""
        first = self.first
        [(passed,)] = self._select("SELECT min(position) FROM cursors")
        upto = self.position_at(self._clock.now() - int(self._retention.max_age * 1e9))
        if passed is not None:
            upto = min(upto, passed)
        # The rest is for the log, and for what is moved while room is made.
        in_use = self._bytes_in_use()
        excess = in_use - (self._retention.max_bytes - 3 * self._log_limit)
        if excess > 0:
            upto = max(upto, first + (self.last - first) * excess // in_use)
        # The newest stays: it has the time that `recorded` may not fall behind.
        upto = min(upto, self._newest() - 1, first + _PRUNED_AT_ONCE - 1)
        if upto >= first and passed is not None and upto > passed:
            log.warning(
                "journal %s is too large: events up to %d go, though a cursor is at %d",
                *(self._path, upto, passed),
            )
        return upto

    def _newest(self) -> int:
        [(newest,)] = self._select("SELECT max(position) FROM events")
        return int(newest or 0)

    def _bytes_in_use(self) -> int:
        [(size,)] = self._select(
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        return int(size)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self._file.bytes

    async def _empty_log(self) -> None:
        await self._checkpoint(empty=True)
        # If somebody who reads keeps it from being emptied, not for each event.
        self._relieve_at = self._file.log_bytes + self._log_limit

    async def _checkpoint(self, *, empty: bool) -> None:
        """Have the log moved into the file. On a full disk it stays, and goes on to serve."""

        def checkpoint() -> None:
            self._file.checkpoint(self._maintainer, empty=empty)

        try:
            await to_thread.run_sync(checkpoint)
        except FAILURES as error:
            log.error("%s", self._file.explained(error))

    def _explained(self, error: Failure | OSError) -> TaskdError:
        """The error of the journal's file, or of its mark's."""
        if not isinstance(error, OSError):
            return self._file.explained(error)
        text = f"journal {self._path}: its mark: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceExhausted(text, verbatim=True)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ELOOP):
            return FailedPrecondition(text, verbatim=True)
        return Unknown(text)

    def close(self) -> None:
        """Close the file. What an event has been told of is then on the disk, if that works."""
        clean = False
        with suppress(*FAILURES):
            self._file.checkpoint(self._writer, empty=True)
            clean = not self._file.log_bytes
        for connection in (self._maintainer, self._reader, self._writer):
            connection.close()
        if self._mark is not None:
            with suppress(OSError):
                self._mark.close(clean=clean)

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
