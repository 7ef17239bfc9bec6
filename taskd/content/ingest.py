"""A write under way, on disk. Source: containerd's ``content/local/writer.go``. All of it blocks.

Each write goes straight to the file, so that what was written is there after the daemon's death;
only `Ingest.sync` says that it is there after a power cut.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from taskd.content.files import explained
from taskd.errors import NotFound, Unknown

__all__ = ["Ingest", "Status", "read_status"]

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Status:
    """How far a write has come. Sizes are in bytes, times in nanoseconds since the epoch."""

    ref: str
    offset: int
    total: int
    """What its writer expects to write; 0 if that is not known."""
    started_at: int
    updated_at: int
    expected: str = ""
    """Never set while bytes are written: only the commit says what they should be."""


class Ingest:
    """One write, open. It has one user at a time, who sees to that."""

    def __init__(self, descriptor: int, folder: Path, status: Status) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.status = status
        self._descriptor = descriptor
        self._hash = hashlib.sha256()

    @classmethod
    def open(
        cls, folder: Path, key: str, total: int, check_cancelled: Callable[[], None]
    ) -> Ingest:
        """Begin the write with that key, or go on with one that was interrupted.

        What is there already is read again, to know its digest; in between `check_cancelled` may
        raise. Raises `Unknown`.
        """
        with explained(f"mkdir {folder}"):
            folder.mkdir(mode=0o700, exist_ok=True)
        status = _resumable(folder, key, total)
        resumed = status is not None
        if status is None:
            now = time.time_ns()
            status = Status(key, 0, total, now, now)
            _begin(folder, status)
        data = folder / "data"
        with explained(f"failed to open data file: open {data}"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(data, flags if resumed else flags | os.O_TRUNC, 0o644)
        ingest = cls(descriptor, folder, status)
        try:
            ingest._read_again(check_cancelled)
        except BaseException:
            os.close(descriptor)
            raise
        return ingest

    @property
    def digest(self) -> str:
        """Of what has been written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, content: bytes) -> None:
        """Append. Raises `Unknown`, after which `status` still says how much there is."""
        view = memoryview(content)
        while view:
            with explained(f"write {self.data}"):
                count = os.write(self._descriptor, view)
            self._hash.update(view[:count])
            self._advance(self.status.offset + count)
            view = view[count:]

    def truncate(self) -> None:
        """Begin anew."""
        with explained(f"truncate {self.data}"):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.truncate(self._descriptor, 0)
        self._hash = hashlib.sha256()
        self._advance(0)

    def sync(self) -> None:
        """Put what was written onto the disk. Raises `Unknown`."""
        with explained(f"sync failed: sync {self.data}"):
            os.fsync(self._descriptor)

    def copy(self, blob: Path, check_cancelled: Callable[[], None]) -> None:
        """Append a blob. Raises `Unknown`, and in between what `check_cancelled` does."""
        with explained(f"read {blob}"), blob.open("rb", buffering=0) as file:
            while content := file.read(_CHUNK):
                self.write(content)
                check_cancelled()

    def close(self) -> None:
        """Leave the write to be resumed; also if its folder was removed meanwhile."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        with suppress(OSError):
            _put(self.folder / "updatedat", _text(self.status.updated_at))

    def _advance(self, offset: int) -> None:
        status = self.status
        self.status = Status(
            status.ref, offset, status.total, status.started_at, time.time_ns(), status.expected
        )

    def _read_again(self, check_cancelled: Callable[[], None]) -> None:
        with explained(f"read {self.data}"):
            while content := os.read(self._descriptor, _CHUNK):
                self._hash.update(content)
                check_cancelled()


def read_status(folder: Path) -> Status:
    """How far the write in `folder` has come. Raises `NotFound`, `Unknown`."""
    data = folder / "data"
    try:
        found = data.stat()
        ref = (folder / "ref").read_bytes().decode()  # as it is: it may have any line ends
        started_at = _nanoseconds(folder / "startedat")
        updated_at = _nanoseconds(folder / "updatedat")
    except FileNotFoundError as error:
        doing = "stat" if error.filename == str(data) else "open"
        raise NotFound(f"{doing} {error.filename}: no such file or directory") from None
    except (OSError, ValueError) as error:
        raise Unknown(f"could not read the state of {folder}: {error}") from error
    # The time of the last change is written when the writer leaves; the file's may be newer.
    updated_at = max(updated_at, found.st_mtime_ns)
    return Status(ref, found.st_size, _total(folder), started_at, updated_at)


def _resumable(folder: Path, key: str, total: int) -> Status | None:
    try:
        status = read_status(folder)
    except NotFound:
        return None
    except Unknown as error:
        _log.info("a write cannot be resumed, and begins anew: %s", error)
        return None
    if status.ref != key or (total > 0 and status.total > 0 and total != status.total):
        _log.info("the write in %s is another one, and begins anew", folder)
        return None
    return status


def _begin(folder: Path, status: Status) -> None:
    # The data goes first: without the other files nobody resumes what is left of it.
    with explained(f"begin {folder}"):
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if status.total > 0:
            _put(folder / "total", str(status.total))
        _put(folder / "startedat", _text(status.started_at))
        _put(folder / "updatedat", _text(status.updated_at))
        _put(folder / "ref", status.ref)


def _put(file: Path, text: str) -> None:
    """Write a small file as a whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_bytes(text.encode())
    temporary.rename(file)


def _total(folder: Path) -> int:
    try:
        return int((folder / "total").read_text())
    except (OSError, ValueError):
        return 0


def _text(nanoseconds: int) -> str:
    """RFC 3339, to the nanosecond."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _nanoseconds(file: Path) -> int:
    """The time in a file that `_text` made. Raises OSError, ValueError."""
    whole, _, fraction = file.read_text().removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    return int(seconds) * 10**9 + int(f"{fraction:0<9}")
