"""``taskd-logger``: keeps what a container writes, as Docker's ``json-file`` does.

Shims start it for ``binary://…/taskd-logger?path=FILE&max-size=BYTES&max-file=COUNT``, containerd's
as well as taskd's: with what the container writes as descriptors 3 and 4, and 5 to close when it is
ready (containerd's ``runtime/v2/README.md``). It is one process for each container, so that it
imports next to nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import sys
import termios
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

__all__ = ["NAME", "main", "remove", "rotated", "settled"]

NAME = "taskd-logger"

MAX_SIZE = 20 << 20
"""Bytes of a file; with the next line it is put aside."""
MAX_FILES = 5
LINE = 16 << 10
"""Bytes of an entry, as with Docker: a line that is longer becomes several."""
IDLE_MS = 200
"""A line that has no end by then is written as it is: a prompt, for one."""

_EARLIER_SECONDS = 5.0

_STREAMS = {3: "stdout", 4: "stderr"}


def rotated(path: Path) -> list[Path]:
    """The files that have been put aside, the oldest first: ``FILE.2``, ``FILE.1``."""
    try:
        names = [each for each in path.parent.iterdir() if each.stem == path.name]
    except OSError:
        return []
    numbered = [each for each in names if each.suffix[1:].isdecimal()]
    return sorted(numbered, key=lambda each: -int(each.suffix[1:]))


def remove(path: Path) -> None:
    """Remove what has been kept in `path`, and the folders that are empty with that."""
    for each in [*rotated(path), path]:
        each.unlink(missing_ok=True)
    for folder in list(path.parents)[:2]:
        try:
            folder.rmdir()
        except OSError:
            return


def settled(path: Path) -> bool:
    """Whether all that has been written to the logger of `path` is in there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        logger = _holder(fd, _THERE)
        # What it has not read, and then what it has read and not written.
        return logger is None or not (_unread(logger) or _holder(fd, _BUSY) is not None)
    finally:
        os.close(fd)


_THERE, _BUSY = 0, 1
"""Bytes of the file that the logger locks: for good, and from reading something to writing it."""
_FLOCK = struct.Struct("hhqqi4x")


def _holder(fd: int, byte: int) -> int | None:
    """The process that has locked a byte of a file."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _unread(pid: int) -> bool:
    for number in _STREAMS:
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # that one has ended
        try:
            if any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):
                return True
        finally:
            os.close(fd)
    return False


class _File:
    """Where lines go; it is put aside when it is full.

    What the disk does not take is lost, which is said as soon as it takes something.
    """

    def __init__(self, path: Path, max_size: int, max_files: int) -> None:
        self._path = path
        self._max_size = max_size
        self._max_files = max_files
        self._lost = 0
        # What is there ends in the middle of a line.
        self._torn = False
        self._fd = -1
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        before, self._fd = self._fd, os.open(self._path, flags, 0o640)
        if before >= 0:
            os.close(before)
        self._take()
        self.busy(True)
        self._size = os.fstat(self._fd).st_size

    def _take(self) -> None:
        """An earlier one of the same container may be about to end; nobody else is to be here."""
        latest = time.monotonic() + _EARLIER_SECONDS
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _THERE)
                return
            except (BlockingIOError, PermissionError):
                if time.monotonic() > latest:
                    sys.exit(f"{NAME}: {self._path}: another logger writes to it")
            time.sleep(0.02)

    def busy(self, busy: bool) -> None:
        """There is something that is read and not written yet, or there is not."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX if busy else fcntl.LOCK_UN, 1, _BUSY)

    def write(self, lines: Iterable[bytes]) -> None:
        pending = b""
        for line in lines:
            if self._size + len(pending) + len(line) > self._max_size and self._size + len(pending):
                self._write(pending)
                pending = b""
                self._rotate()
            pending += line
        self._write(pending)

    def _write(self, data: bytes) -> None:
        if self._lost:
            words = f"{NAME}: {self._lost} bytes were dropped: the disk was full\n"
            told = _entry("stderr", words.encode())
            if self._put(b"\n" + told if self._torn else told):
                self._lost += len(data)
                return
        self._lost = self._put(data)

    def _put(self, data: bytes) -> int:
        """How many bytes of it the disk does not take."""
        done = 0
        while done < len(data):
            try:
                done += os.write(self._fd, data[done:])
            except OSError:
                break
        self._size += done
        if done:
            self._torn = data[done - 1 : done] != b"\n"
        return len(data) - done

    def _rotate(self) -> None:
        """Go on in another file; as long as the disk has no room for one, in this one."""
        try:
            if self._path.exists():
                self._put_aside()
            self._open()
        except OSError:
            return
        self._torn = False

    def _put_aside(self) -> None:
        for number in range(self._max_files - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = older.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if newer.exists():
                newer.replace(older)
        if self._max_files <= 1:
            self._path.unlink(missing_ok=True)


class _Stream:
    """One of the two, cut into entries."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    @property
    def begun(self) -> bool:
        """There is a line without its end."""
        return bool(self._rest)

    def entries(self, data: bytes) -> Iterable[bytes]:
        """For `data`; without, of what is there of a line."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            rest = line + b"\n"
            while rest:
                rest = yield from self._piece(rest)
        while len(self._rest) > LINE or (self._rest and not data):
            self._rest = yield from self._piece(self._rest)

    def _piece(self, text: bytes) -> Generator[bytes, None, bytes]:
        """An entry of the begin of `text`; what is left of that."""
        end = min(LINE, len(text))
        # Not in the middle of a character, if it is text at all.
        while LINE - 3 < end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield _entry(self._name, text[:end])
        return text[end:]


def _entry(stream: str, piece: bytes) -> bytes:
    seconds, rest = divmod(time.time_ns(), 10**9)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    document = {
        "log": piece.decode(errors="replace"),
        "stream": stream,
        "time": f"{stamp}.{rest:09}Z",
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def main() -> int:
    """Keep what comes on descriptors 3 and 4 until both end."""
    asked = _asked(sys.argv[1:])
    file = _File(Path(asked["path"]), int(asked["max-size"]), int(asked["max-file"]))
    os.close(5)
    streams = {number: _Stream(name) for number, name in _STREAMS.items()}
    poll = select.poll()
    for number in streams:
        poll.register(number, select.POLLIN)
    while streams:
        begun = any(stream.begun for stream in streams.values())
        file.busy(begun)
        for number, _ in poll.poll(IDLE_MS if begun else None):
            file.busy(True)
            data = os.read(number, 1 << 16)
            file.write(streams[number].entries(data))
            if not data:
                poll.unregister(number)
                os.close(number)
                del streams[number]
            begun = False
        if begun:  # nothing has come: somebody is to see what is there of a line
            for stream in streams.values():
                file.write(stream.entries(b""))
    file.write(())  # what was lost last is to be said, too
    return 0


def _asked(arguments: Sequence[str]) -> dict[str, str]:
    """Names and values by turns, in any order: containerd's shim has them from a Go map."""
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if "path" not in pairs:
        raise SystemExit(f"usage: {NAME} path FILE [max-size BYTES] [max-file COUNT]")
    return {"max-size": str(MAX_SIZE), "max-file": str(MAX_FILES)} | pairs


if __name__ == "__main__":
    raise SystemExit(main())
