"""What containers have written, as `taskd.logger` keeps it."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import anyio
import anyio.to_thread

from taskd.errors import FailedPrecondition
from taskd.logger import NAME, rotated, settled

__all__ = ["Entry", "Reader", "uri", "usual"]

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """A line, or a piece of one that was very long."""

    stream: str
    """``stdout`` or ``stderr``."""
    text: str
    """With its end, unless it has none."""
    at: int
    """When it was written, in nanoseconds since the epoch."""


def usual(namespace: str, id: str) -> Path:  # noqa: A002
    """A new file for a container's output: ``ID-json.log``, as with Docker, in a folder of its own.

    Its name is nobody else's: another daemon may have a container of that namespace and id.
    """
    if os.geteuid() == 0:
        base = Path("/var/lib/taskd-logs")
    else:
        data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
        base = Path(data, "taskd-logs")
    return base / namespace / f"{id}-{uuid.uuid4().hex[:8]}" / f"{id}-json.log"


def uri(path: Path, *, max_size: int = 0, max_files: int = 0) -> str:
    """What a shim is told so that `taskd.logger` writes to `path`.

    Raises `FailedPrecondition` if that is not installed.
    """
    program = Path(sysconfig.get_path("scripts"), NAME)
    if not program.exists():
        found = shutil.which(NAME)
        if found is None:
            raise FailedPrecondition(
                f"there is no {NAME} in {program.parent} or on PATH", verbatim=True
            )
        program = Path(found)
    asked: dict[str, Any] = {"path": path}
    if max_size:
        asked["max-size"] = max_size
    if max_files:
        asked["max-file"] = max_files
    return f"binary://{program}?{urlencode(asked)}"


class Reader:
    """What has been written, oldest first, as ``async for`` has it."""

    def __init__(
        self,
        path: Path,
        *,
        ended: Callable[[], Awaitable[bool]] | None = None,
        tail: int | None = None,
        since: int | None = None,
        gone: Exception | None = None,
    ) -> None:
        """It goes on until `ended`, or without it ends with what there is.

        `gone` is raised if there is no file: a logger makes one before anything is written.
        """
        self._path = path
        self._gone = gone
        self._found = False
        self._ended = ended
        self._tail = tail
        self._since = since

    async def text(self) -> str:
        """All of it."""
        return "".join([entry.text async for entry in self])

    async def lines(self) -> AsyncIterator[str]:
        """Without their ends."""
        async for entry in self:
            yield entry.text.removesuffix("\n")

    async def __aiter__(self) -> AsyncIterator[Entry]:
        file = None
        rest = b""
        try:
            past, file = await anyio.to_thread.run_sync(self._past)
            for entry in past:
                yield entry
            while self._ended is not None:
                # Asked before it is read, so that what was written before the end is read.
                over = await self._ended() and settled(self._path)
                file = file or self._open()
                data = file.read() if file else b""
                *whole, rest = (rest + data).split(b"\n")
                for entry in self._entries(whole):
                    yield entry
                if data:
                    continue
                if file is not None and self._moved(file):
                    file.close()
                    file = None
                    continue
                if over:
                    break
                await anyio.sleep(POLL_SECONDS)
            if self._gone is not None and not self._found:
                raise self._gone
        finally:
            if file is not None:
                file.close()

    def _past(self) -> tuple[list[Entry], IO[bytes] | None]:
        """What is there, and the file that goes on."""
        kept: deque[Entry] = deque(maxlen=self._tail)
        for path in rotated(self._path):
            try:
                with path.open("rb") as older:
                    kept.extend(self._entries(older))
            except FileNotFoundError:
                continue
        file = self._open()
        if file is not None:
            place = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                place += len(line)
                kept.extend(self._entries([line]))
            file.seek(place)
            if self._ended is None:
                file.close()
                file = None
        return list(kept), file

    def _open(self) -> IO[bytes] | None:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return None
        self._found = True
        return file

    def _moved(self, file: IO[bytes]) -> bool:
        """Whether it has been put aside, and there is another in its place."""
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _entries(self, lines: Any) -> Iterator[Entry]:
        for line in lines:
            try:
                found = json.loads(line)
                entry = Entry(found["stream"], found["log"], _nanoseconds(found["time"]))
            except (ValueError, KeyError, TypeError):
                continue  # a disk was full, or a machine went down
            if self._since is None or entry.at >= self._since:
                yield entry


def _nanoseconds(text: str) -> int:
    """Of a time with nine digits after the second, and in UTC."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = int(datetime.fromisoformat(f"{seconds}+00:00").timestamp())
    return whole * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
