"""What taskd's SQLite files have in common: opening, schema versions, errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from taskd.errors import DataLoss, FailedPrecondition, ResourceExhausted, TaskdError, Unknown

__all__ = ["Row", "SqliteFile", "Transaction"]

Row = tuple[Any, ...]

_CACHE_KIB = 256
"""Pages that a connection keeps in memory, of which the kernel has most anyway."""


class SqliteFile:
    """A file and how to open it; `name` is what messages call it, "journal"."""

    def __init__(self, path: Path, name: str, sync: Literal["full", "normal"]) -> None:
        """With `sync` "full" a commit survives a power cut; with "normal", the end of taskd."""
        self.path = path
        self.name = name
        self._sync = sync
        # Locked for this process alone, with the index of the log in its memory instead of a file
        # that others may lock (sqlite.org/vfs.html).
        self._uri = f"file:{quote(os.fsencode(path))}?vfs=unix-excl"

    def connect(self) -> sqlite3.Connection:
        """A connection that any thread may use, without transactions of Python's making.

        Raises as `explained`.
        """
        try:
            connection = sqlite3.connect(
                self._uri, uri=True, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA synchronous = {self._sync}")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.explained(error) from error
        return connection

    def prepare(self, connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
        """Bring the schema up to date: one script a version, the first makes version 1.

        Raises `DataLoss` for a damaged file, `FailedPrecondition` for one that a newer taskd has
        written, and as `explained`.
        """
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
            if not version:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            for number, script in enumerate(migrations[version:], start=version + 1):
                connection.executescript(
                    f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT"
                )
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.explained(error) from error

    def explained(self, error: sqlite3.Error | UnicodeDecodeError) -> TaskdError:
        """The domain's error for one of SQLite's: `DataLoss`, `FailedPrecondition` for a file that
        cannot be used, `ResourceExhausted` for a full disk, else `Unknown`.
        """
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
            case _:
                return Unknown(text)


class Transaction:
    """``with Transaction(connection)``: all of it, or nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
