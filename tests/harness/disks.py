"""What can be wrong with a journal's disk for a while, made with real means."""

from __future__ import annotations

import ctypes
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

__all__ = ["FAULTS", "Fault", "locked"]

Fault = Callable[[Path], AbstractContextManager[str]]
"""Breaks ``events.db`` in a folder of this process's, until it is left; gives SQLite's words."""


@contextmanager
def full_disk(folder: Path) -> Iterator[str]:
    """What is written to the small file system of `folder` fails; yields the words that say so."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield "database or disk is full"
    finally:
        filler.unlink()


@contextmanager
def failing_writes(folder: Path) -> Iterator[str]:
    """No file may be written: an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield "disk I/O error"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """A tool for backups has the journal locked."""
    with closing(sqlite3.connect(folder / "events.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield "database is locked"
        other.execute("ROLLBACK")


@contextmanager
def no_memory(folder: Path) -> Iterator[str]:
    """SQLite gets no memory any more."""
    limit = ctypes.CDLL("libsqlite3.so.0").sqlite3_hard_heap_limit64
    limit.argtypes, limit.restype = [ctypes.c_int64], ctypes.c_int64
    before = limit(1)
    try:
        yield "out of memory"
    finally:
        limit(before)


FAULTS = (full_disk, failing_writes, locked, no_memory)
