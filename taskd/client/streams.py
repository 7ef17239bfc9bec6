"""A process's standard streams, as the FIFOs that a shim and a client have between them."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from taskd.labels import STREAMS

__all__ = ["Input", "Output", "Streams", "home", "lines"]

LIMIT = 1 << 20
"""Bytes that are taken before anybody asks for them; then the process waits."""
CHUNK = 1 << 16


class Output:
    """What a process writes, to its end; ``async for`` has it in pieces, as they come.

    What has been written before the end is there, however late it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limit: float = LIMIT
        self.listeners: list[Callable[[bytes], None]] = []
        """Each is told what comes, when it comes, whoever reads it."""
        self._taken = bytearray()
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Tells a daemon that is to remove the container that somebody still reads this.
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        # As long as there is a writer it has no end, though nobody has opened it yet.
        self._hold = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._resume()

    @property
    def ended(self) -> bool:
        """There is no more to come, but for what has been taken already."""
        return self._fd < 0

    def opened(self) -> None:
        """The shim has opened its end: when that is closed, this has ended."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def lift(self) -> None:
        """Take everything, so that the process need not wait for us."""
        self.limit = float("inf")
        self._resume()

    def take(self, size: int | None = None) -> bytes:
        """What has been written and not been read yet, without waiting."""
        self._fill()
        taken = bytes(self._taken[:size])
        del self._taken[: len(taken)]
        self._resume()
        return taken

    async def receive(self, size: int = CHUNK) -> bytes:
        """The next piece of it, of `size` bytes at most; nothing at its end."""
        await self.ready()
        return self.take(size)

    async def ready(self) -> None:
        """Wait until there is something to take, or no more to come."""
        while not (self._taken or self.ended):
            self._more.clear()
            await self._more.wait()

    async def read(self) -> bytes:
        """All that comes until its end."""
        pieces = []
        while piece := await self.receive():
            pieces.append(piece)
        return b"".join(pieces)

    async def text(self) -> str:
        """All that comes until its end, as text."""
        return (await self.read()).decode(errors="replace")

    def lines(self) -> AsyncIterator[str]:
        """Its lines as they come, without their ends."""
        return lines([self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.receive():
            yield piece

    def close(self) -> None:
        """Take what is there, and no more."""
        self.opened()
        self.limit = float("inf")
        self._fill()
        self._end()

    def _resume(self) -> None:
        if not self._reading and not self.ended and len(self._taken) < self.limit:
            self._loop.add_reader(self._fd, self._fill)
            self._reading = True

    def _fill(self) -> None:
        while not self.ended and len(self._taken) < self.limit:
            try:
                piece = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            if not piece:
                self._end()
                return
            self._taken += piece
            self._more.set()
            for listener in self.listeners:
                listener(piece)
        self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def _end(self) -> None:
        if not self.ended:
            self._pause()
            os.close(self._fd)
            self._fd = -1
            self._more.set()


async def lines(outputs: Sequence[Output]) -> AsyncIterator[str]:
    """The lines of several as they come; each one's are in their order."""
    decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in outputs]
    rests = [""] * len(outputs)
    open_ones = set(range(len(outputs)))
    while open_ones:
        for number in sorted(open_ones):
            output = outputs[number]
            taken = output.take()
            ended = output.ended and not taken
            text = rests[number] + decoders[number].decode(taken, final=ended)
            *whole, rests[number] = text.split("\n")
            if ended:
                open_ones.discard(number)
                whole += filter(None, [rests[number]])
            for line in whole:
                yield line.removesuffix("\r")
        if waiting := [outputs[number] for number in open_ones]:
            await _any_ready(waiting)


async def _any_ready(outputs: Sequence[Output]) -> None:
    if len(outputs) == 1:
        await outputs[0].ready()
        return
    tasks = [asyncio.ensure_future(each.ready()) for each in outputs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Input:
    """What a process reads."""

    def __init__(self, path: Path, close: Callable[[], Awaitable[None]]) -> None:
        self.path = path
        self._close = close
        # With both ends of it ours, opening it does not wait for the shim.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def opened(self) -> None:
        """The shim has opened its end: from now on a process that is gone is noticed."""
        if self._fd >= 0:
            with suppress(OSError):  # it has closed it already
                writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.dup2(writer, self._fd, inheritable=False)
                os.close(writer)

    async def write(self, data: bytes | str) -> None:
        """Write all of it. Raises BrokenPipeError once nobody can read it any more."""
        left = memoryview(data.encode() if isinstance(data, str) else data)
        while left:
            if self._fd < 0:
                raise BrokenPipeError("the standard input is closed")
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._fd)

    async def aclose(self) -> None:
        """The process reads the end of it, after all that has been written."""
        if self._fd >= 0:
            self.close()
            await self._close()

    def close(self) -> None:
        """Let go of it, without a word to the daemon."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Streams:
    """The FIFOs of one process, in a folder of their own, and our ends of them."""

    def __init__(self) -> None:
        self.stdin: Input | None = None
        self.stdout: Output | None = None
        self.stderr: Output | None = None
        self.closed = False
        self._folder: Path | None = None

    @classmethod
    def make(
        cls,
        home: Path,
        *,
        stdin: bool,
        output: bool,
        tty: bool,
        close: Callable[[], Awaitable[None]],
    ) -> Streams:
        """New ones below `home`. A terminal has one output. Raises OSError."""
        streams = cls()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = streams._folder = Path(tempfile.mkdtemp(dir=home))
        try:
            names = ["stdout", *([] if tty else ["stderr"])] if output else []
            for name in [*(["stdin"] if stdin else []), *names]:
                os.mkfifo(folder / name, 0o600)
            streams._open(close, *(folder / name for name in ("stdin", "stdout", "stderr")))
        except BaseException:
            streams.close(remove=True)
            raise
        return streams

    @classmethod
    def attached(cls, paths: Sequence[str], close: Callable[[], Awaitable[None]]) -> Streams:
        """Those at `paths`, which somebody else has made: what is no FIFO is left out."""
        streams = cls()
        streams._open(close, *map(Path, paths))
        streams.opened()
        return streams

    def _open(
        self, close: Callable[[], Awaitable[None]], stdin: Path, stdout: Path, stderr: Path
    ) -> None:
        self.stdin = Input(stdin, close) if stdin.is_fifo() else None
        self.stdout = Output(stdout) if stdout.is_fifo() else None
        self.stderr = Output(stderr) if stderr.is_fifo() else None

    @property
    def outputs(self) -> list[Output]:
        return [each for each in (self.stdout, self.stderr) if each is not None]

    def path(self, name: str) -> str:
        """Of the FIFO that is called so, or nothing."""
        stream: Input | Output | None = getattr(self, name)
        return "" if stream is None else str(stream.path)

    def opened(self) -> None:
        """The shim has opened its ends."""
        for each in (self.stdin, *self.outputs):
            if each is not None:
                each.opened()

    def close(self, *, remove: bool) -> None:
        """Take what is there, and no more; `remove` what a client may come back to."""
        for each in (self.stdin, *self.outputs):
            if each is not None:
                each.close()
        self.closed = True
        if remove and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # there are others in it
                self._folder.parent.rmdir()


def home(address: Path, namespace: str, id: str) -> Path:  # noqa: A002
    """The folder for all streams of a container, of whatever clients."""
    daemon = hashlib.sha256(os.fsencode(address)).hexdigest()[:8]
    # A "-" may be in both names, and each goes with the whole of its folder.
    return _base() / f"{STREAMS}{daemon}-{namespace}+{id}"


def _base() -> Path:
    """Where nobody removes what is there as long as the machine is up."""
    usual = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR")
    return Path(usual if usual and os.access(usual, os.W_OK) else tempfile.gettempdir())
