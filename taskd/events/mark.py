"""How far positions have been given out, noted down where a rollback of the journal does not reach.

With `sync` "normal" a power cut takes the last commits with it, and somebody may have seen them. So
that their numbers are never given to other events, the mark has

- the number up to which any may have been given out, made durable before the first one is: after a
  start of the machine that the last daemon has not lived to see, the journal goes on beyond;
- the last number that was given out. It is not waited for until that is on the disk, but as long as
  the machine runs it tells the truth, so that the end of the daemon alone leaves no gap.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

__all__ = ["Mark"]

_AHEAD = 10_000
"""Numbers that are reserved at once: one wait for the disk for so many events."""

_FORMAT = struct.Struct("<8s16s16sQQ?")
_LAST = struct.Struct("<Q")
_CHECK = struct.Struct("<I")
_MAGIC = b"taskd-1\n"


@dataclass(frozen=True, slots=True)
class _Noted:
    journal: uuid.UUID
    boot: uuid.UUID
    file: int
    """The mark's own inode: a copy tells nothing of what happened to the original since."""
    reserved: int
    clean: bool
    """The journal was closed, and is on the disk."""


class Mark:
    """The mark of a journal, which is to be told of all that it gives out."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._found, self._last = self._read()
        self._noted: _Noted | None = None

    def replaced(self, journal: str) -> int:
        """How far another journal had come that was here before this one; 0 if there was none."""
        found = self._found
        return 0 if found is None or str(found.journal) == journal else self._last

    def used(self, journal: str, last: int) -> int:
        """Up to where numbers may be in use, of a journal that has them up to `last`."""
        found = self._found
        if found is None or str(found.journal) != journal:
            # Nobody knows: a journal that is older than marks are, or whose mark was lost.
            return last + _AHEAD if found is None and last else last
        if found.clean or (found.boot, found.file) == (_boot(), self._inode()):
            return max(self._last, last)
        return max(found.reserved, last)

    def begin(self, journal: str, last: int, count: int = 0) -> None:
        """From now on `journal` gives numbers out, after `last`, and `count` at once.

        Waits for the disk. Raises OSError.
        """
        self.reach(last)
        name = uuid.UUID(journal)
        self._note(_Noted(name, _boot(), self._inode(), last + count + _AHEAD, clean=False))

    def covers(self, last: int) -> bool:
        """Whether numbers up to `last` are reserved."""
        return self._noted is not None and last <= self._noted.reserved

    def reach(self, last: int) -> None:
        """Note that numbers up to `last` are given out. Raises OSError."""
        body = _LAST.pack(last)
        os.pwrite(self._fd, body + _CHECK.pack(crc32(body)), _FORMAT.size + _CHECK.size)

    def close(self, *, clean: bool) -> None:
        """`clean` says that the journal is closed and on the disk. Raises OSError."""
        try:
            if clean and self._noted is not None:
                self._note(replace(self._noted, clean=True))
        finally:
            os.close(self._fd)

    def _inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def _read(self) -> tuple[_Noted | None, int]:
        data = os.pread(self._fd, 512, 0)
        first = _checked(data, _FORMAT)
        second = _checked(data[_FORMAT.size + _CHECK.size :], _LAST)
        if first is None or second is None or first[0] != _MAGIC:
            return None, 0
        _, journal, boot, *rest = first
        return _Noted(uuid.UUID(bytes=journal), uuid.UUID(bytes=boot), *rest), second[0]

    def _note(self, noted: _Noted) -> None:
        body = _FORMAT.pack(
            _MAGIC, noted.journal.bytes, noted.boot.bytes, noted.file, noted.reserved, noted.clean
        )
        # In place, and less than a sector: it is the old one or the new one.
        os.pwrite(self._fd, body + _CHECK.pack(crc32(body)), 0)
        os.fsync(self._fd)
        self._noted = noted


def _checked(data: bytes, format: struct.Struct) -> tuple[Any, ...] | None:  # noqa: A002
    """What is at the beginning of `data`, if its checksum fits."""
    body, check = data[: format.size], data[format.size : format.size + _CHECK.size]
    if len(check) < _CHECK.size or _CHECK.unpack(check) != (crc32(body),):
        return None
    return format.unpack(body)


def _boot() -> uuid.UUID:
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
