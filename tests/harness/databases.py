"""Databases of a daemon that runs, which has them locked for itself."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

__all__ = ["copied"]

ATTEMPTS = 200


@contextmanager
def copied(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy of `file`, as it was at some moment."""
    log = Path(f"{file}-wal")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, file.name)
        for _ in range(ATTEMPTS):
            before = _state(file, log)
            shutil.copyfile(file, copy)
            with suppress(FileNotFoundError):
                shutil.copyfile(log, f"{copy}-wal")
            if _state(file, log) == before:
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"{file} is never at rest")
        with closing(sqlite3.connect(copy)) as connection:
            yield connection


def _state(*files: Path) -> list[tuple[int, int]]:
    found: list[os.stat_result] = []
    for file in files:
        with suppress(FileNotFoundError):
            found.append(file.stat())
    return [(each.st_mtime_ns, each.st_size) for each in found]
