"""What taskd's SQLite files have in common: opening, schema versions, the log, errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from taskd import wal
from taskd.errors import (
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    TaskdError,
    Unavailable,
    Unknown,
)

__all__ = [
    "FAILURES",
    "PATIENCE_SECONDS",
    "Failure",
    "Row",
    "SqliteFile",
    "Transaction",
    "impatient",
    "open_log",
]

Row = tuple[Any, ...]

FAILURES = (sqlite3.Error, MemoryError, UnicodeDecodeError)
"""What `sqlite3` raises: its own errors, but for SQLITE_NOMEM, and for words that are no UTF-8."""

Failure = sqlite3.Error | MemoryError | UnicodeDecodeError

PATIENCE_SECONDS = 5.0
"""How long somebody else, a tool for backups say, may have a file locked."""

_CACHE_KIB = 256
"""Pages that a connection keeps in memory, of which the kernel has most anyway."""


class SqliteFile:
    """A file and how to open it; `name` is what messages call it, "journal"."""

    def __init__(self, path: Path, name: str, sync: Literal["full", "normal"]) -> None:
        """With `sync` "full" a commit survives a power cut; with "normal", the end of taskd."""
        self.path = path
        self.name = name
        self.fresh = False
        """`prepare` has found nothing in it."""
        self.lost = ""
        """What `prepare` has found to be lost, in words."""
        self._sync = sync
        # Locked for this process alone, with the index of the log in its memory instead of a file
        # that others may lock (sqlite.org/vfs.html).
        self._uri = f"file:{quote(os.fsencode(path))}?vfs=unix-excl"
        self._log = path.with_name(f"{path.name}-wal")

    def connect(self) -> sqlite3.Connection:
        """A connection that any thread may use, without transactions of Python's making.

        It waits for who has the file locked: the event loop wants it `impatient`. Raises as
        `explained`.
        """
        try:
            connection = sqlite3.connect(
                self._uri,
                uri=True,
                timeout=PATIENCE_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA synchronous = {self._sync}")
        except FAILURES as error:
            raise self.explained(error) from error
        return connection

    def prepare(self, connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
        """Bring the schema up to date: one script a version, the first makes version 1.

        Raises `DataLoss` for a damaged file, `FailedPrecondition` for one that a newer taskd has
        written, and as `explained`.
        """
        logged = wal.read(self._log)
        try:
            [(verdict,)] = connection.execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise DataLoss(f"{self.name} {self.path} is damaged: {verdict}", verbatim=True)
            [(version,)] = connection.execute("PRAGMA user_version")
            if version > len(migrations):
                raise FailedPrecondition(
                    f"{self.name} {self.path} has schema version {version}, "
                    f"this taskd knows no version after {len(migrations)}",
                    verbatim=True,
                )
            self.fresh = not version
            self.lost = wal.lost(logged, self.checkpoint(connection))
            if not version:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            for number, script in enumerate(migrations[version:], start=version + 1):
                connection.executescript(
                    f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT"
                )
        except FAILURES as error:
            raise self.explained(error) from error

    def checkpoint(self, connection: sqlite3.Connection, *, empty: bool = False) -> int:
        """Move what has been committed from the log into the file; returns the log's pages.

        With `empty` the log is then cut to nothing, so that it takes no room, and damage to it
        costs nothing; nobody can write meanwhile. Whoever reads keeps the log from being emptied.
        Waits for the disk. Raises one of `FAILURES`.
        """
        # One that has looked at the file before it had a log, and not read it since, does nothing
        # here: findings/sqlite-checkpoint-before-wal.sh.
        open_log(connection)
        [(_, pages, moved)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if empty and pages == moved:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return max(int(pages), 0)

    @property
    def log_bytes(self) -> int:
        """What the log takes on the disk."""
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def bytes(self) -> int:
        """What the file and its log take on the disk."""
        return self.path.stat().st_size + self.log_bytes

    def explained(self, error: Failure) -> TaskdError:
        """The domain's error for one of SQLite's: `DataLoss`, `FailedPrecondition` for a file that
        cannot be used, `ResourceExhausted` for a full disk or memory, `Unavailable` for one that
        somebody else has locked, else `Unknown`. All but the first may pass.
        """
        if isinstance(error, MemoryError):
            return ResourceExhausted(f"{self.name} {self.path}: out of memory", verbatim=True)
        if isinstance(error, UnicodeDecodeError):
            # What SQLite says of a damaged schema quotes it, and sqlite3 takes that for UTF-8.
            return DataLoss(f"{self.name} {self.path} is damaged: its schema", verbatim=True)
        text = f"{self.name} {self.path}: {error}"
        match error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else 0:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return DataLoss(text, verbatim=True)
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY:
                return FailedPrecondition(text, verbatim=True)
            case sqlite3.SQLITE_FULL:
                return ResourceExhausted(text, verbatim=True)
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return Unavailable(text, verbatim=True)
            case _:
                return Unknown(text)


def open_log(connection: sqlite3.Connection) -> None:
    """Have a connection open its log, which it does when it first reads.

    So all descriptors that there will be are there from the start. Raises one of `FAILURES`.
    """
    connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()


def impatient(connection: sqlite3.Connection) -> None:
    """From now on it fails at once, with SQLITE_BUSY, where it would have to wait for a lock."""
    connection.execute("PRAGMA busy_timeout = 0")


class Transaction:
    """``with Transaction(connection)``: all of it, or nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        if self._connection.in_transaction:
            # One before failed, and then so did its end: there was no memory for it, say.
            self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with suppress(*FAILURES):  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
