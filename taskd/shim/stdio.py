"""A process's standard streams: FIFOs, files, and logger programs.

Where nothing needs copying the process gets the client's FIFO itself. The shim only keeps an end of
each open, so that a client may come and go: what is written while nobody reads waits in the FIFO,
as with containerd's shim, and nobody dies of SIGPIPE. A container that wants `Pipes` gets them, as
from containerd's shim; terminals are in `taskd.shim.console`.
Source: containerd's ``pkg/process/io.go``.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from taskd.errors import Unknown
from taskd.shim.copying import Copy
from taskd.shim.descriptors import Descriptors
from taskd.shim.reaper import Ended, Reaper

__all__ = ["Logger", "Pipes", "Stdio", "Streams"]

_LOGGER_SECONDS = 10.0
"""For a logger to end after its last line, and once more after SIGTERM."""
_READY_SECONDS = 30.0
"""For a logger to say that it is ready."""
_NAMES = ("standard input", "standard output", "standard error")
_AT_ONCE = os.O_NONBLOCK | os.O_NOCTTY
"""Opening does not wait, and a terminal does not become that of the shim."""


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where a process reads and writes: paths of FIFOs, or ``file://`` and ``binary://`` URIs."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Pipes:
    """Processes get pipes of this owner, which the shim copies to and from what a client named."""

    uid: int = 0
    gid: int = 0

    def open(self, own: Descriptors) -> tuple[int, int]:
        """The two ends of a new one, reader and writer, which become `own`."""
        reader, writer = map(own.keep, os.pipe())
        for end in (reader, writer):
            os.fchown(end, self.uid, self.gid)
        return reader, writer


class Streams:
    """The standard streams of one process, or what a terminal is copied to and from.

    Whatever has been opened is closed once, however it ends.
    """

    def __init__(self) -> None:
        self.descriptors = (-1, -1, -1)
        """To be given to the process; the shim closes its own when `handed` is called."""
        self.has_input = False
        # Ends that are kept open until the process is deleted are in here as well.
        self._own = Descriptors()
        # A writing end of the standard input: without one left, the process reads its end.
        self._stdin = -1
        self._logger: Logger | None = None
        # From the client into a pipe, and the other way, if the process has pipes.
        self._input: Copy | None = None
        self._outputs: list[Copy] = []

    @classmethod
    async def open(
        cls,
        stdio: Stdio,
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        pipes: Pipes | None = None,
    ) -> Streams:
        """Raises `Unknown`, which names the path, if one cannot be opened."""
        streams = cls()
        try:
            await streams._open(stdio, id, namespace, reaper, None if stdio.terminal else pipes)
        except BaseException:
            await streams.aclose()
            raise
        return streams

    async def _open(
        self,
        stdio: Stdio,
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        pipes: Pipes | None,
    ) -> None:
        own = self._own
        null = own.keep(os.open(os.devnull, os.O_RDWR))
        given = [null, null, null]
        # A terminal has one output, and whatever is named for another is not looked at.
        named = {1: stdio.stdout} if stdio.terminal else {1: stdio.stdout, 2: stdio.stderr}
        doing = "console copy" if stdio.terminal else "io pipe copy"
        url = urlsplit(stdio.stdout)
        if url.scheme == "binary":
            self._logger = await Logger.start(stdio.stdout, id, namespace, reaper, own)
            given[1:] = self._logger.stdout, self._logger.stderr
            named = {}
        elif url.scheme == "file":
            path = unquote(url.path)
            _make(path)
            named = {number: path for number, name in named.items() if name}
        elif url.scheme:
            raise Unknown(f"failed to create init process I/O: unknown STDIO scheme {url.scheme}")
        for number, path in named.items():
            if not path:
                continue
            given[number] = target = _output(path, own, doing)
            if pipes is not None:
                reader, given[number] = pipes.open(own)
                about = f"{id}: {_NAMES[number]} to {path}"
                copy = Copy(own.give(reader), own.give(target), about)
                self._outputs.append(copy)
                # What a runtime has to say may be more than a pipe takes.
                copy.hold()
        if stdio.stdin:
            self.has_input = True
            given[0], self._stdin = _input(stdio.stdin, own)
            if pipes is not None:
                source = given[0]
                given[0], target = pipes.open(own)
                about = f"{id}: {_NAMES[0]} from {stdio.stdin}"
                self._input = Copy(own.give(source), own.give(target), about)
        if null not in given:
            own.drop(null)
        self.descriptors = (given[0], given[1], given[2])

    def handed(self) -> None:
        """The process has its descriptors: let go of ours, and copy from now on."""
        self._own.drop(*self.descriptors)
        self.descriptors = (-1, -1, -1)
        for copy in (*self._outputs, *filter(None, [self._input])):
            copy.start()

    def close_stdin(self) -> None:
        """Let the process read the end of its input, as soon as its clients have gone, too."""
        self._own.drop(self._stdin)
        self._stdin = -1

    async def settle(self) -> None:
        """The process has ended: wait until a client can read all that it has written.

        One that does not read is not waited for.
        """
        await asyncio.gather(*(copy.settle() for copy in self._outputs))

    async def drained(self, timeout: float) -> None:
        """Wait until the process's output has been copied, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for copy in self._outputs:
                    if copy.started:
                        await copy.done.wait()

    async def aclose(self) -> None:
        """Let go of everything; a logger is given time to write what it has got. Idempotent."""
        for copy in (*self._outputs, *filter(None, [self._input])):
            copy.stop()
        self._own.close()
        self.descriptors = (-1, -1, -1)
        if self._logger is not None:
            await self._logger.finish()


@contextmanager
def _place(path: str) -> Iterator[tuple[str, bool]]:
    """Another name for what is at `path` now, and whether it is a FIFO.

    What is opened by that name is what has been looked at, though `path` may be another's by then:
    to open a FIFO that nobody reads would hold up everybody.
    """
    handle = os.open(path, os.O_PATH)
    try:
        yield f"/proc/self/fd/{handle}", stat.S_ISFIFO(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _output(path: str, own: Descriptors, doing: str) -> int:
    """A descriptor to write to `path`; the reading end of a FIFO is kept open with it."""
    what = "file"
    try:
        with _place(path) as (place, is_fifo):
            if is_fifo:
                what = "w/o fifo"
                # With a reader there, opening it for writing does not wait for the client.
                own.keep(os.open(place, os.O_RDONLY | _AT_ONCE))
            writer = own.keep(os.open(place, os.O_WRONLY | os.O_APPEND | _AT_ONCE))
    except OSError as exc:
        if doing == "io pipe copy":
            doing += f': unable to copy pipes: containerd-shim: opening {what} "{path}" failed'
        raise Unknown(f"failed to start {doing}: open {path}: {_reason(exc)}") from exc
    os.set_blocking(writer, True)
    return writer


def _input(path: str, own: Descriptors) -> tuple[int, int]:
    """A descriptor to read from `path`, and one to write to it if it is a FIFO, or -1."""
    writer = -1
    try:
        with _place(path) as (place, is_fifo):
            reader = own.keep(os.open(place, os.O_RDONLY | _AT_ONCE))
            if is_fifo:
                writer = own.keep(os.open(place, os.O_WRONLY | _AT_ONCE))
    except OSError as exc:
        raise Unknown(f"failed to open stdin fifo {path}: open {path}: {_reason(exc)}") from exc
    os.set_blocking(reader, True)
    return reader, writer


def _make(path: str) -> None:
    """See to it that there is a file, whatever it may be."""
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AT_ONCE, 0o644))
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a FIFO that nobody reads
            return
        raise Unknown(f"failed to create init process I/O: open {path}: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()


class Logger:
    """A program that takes a container's output: containerd's ``binary://`` URIs.

    It has its standard streams as descriptors 3 and 4, and closes 5 when it is ready. What the URI
    asks is its arguments.
    """

    def __init__(self, pid: int, end: asyncio.Future[Ended], stdout: int, stderr: int) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self._pid = pid
        self._end = end

    @classmethod
    async def start(
        cls,
        uri: str,
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        own: Descriptors,
    ) -> Logger:
        """Start it and wait until it is ready; what it will read from becomes `own`."""
        parts = urlsplit(uri)
        arguments = [
            each
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
            for each in ((key, value) if value else (key,))
        ]
        program = unquote(parts.path)
        whose = {"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace}
        with closing(Descriptors()) as passing:
            out_read, out = _pipe(passing, own)
            err_read, err = _pipe(passing, own)
            ready, told = _pipe(passing, passing)
            try:
                with reaper.starting():
                    pid = _run_with([program, *arguments], (out_read, err_read, told), whose)
                    end = reaper.end(pid)
            except OSError as exc:
                raise Unknown(
                    "failed to create init process I/O: failed to start binary process: "
                    f"fork/exec {program}: {_reason(exc)}"
                ) from exc
            passing.drop(out_read, err_read, told)
            try:
                async with asyncio.timeout(_READY_SECONDS):
                    await readable(ready)
            except BaseException as exc:
                if not end.done():
                    os.kill(pid, signal.SIGKILL)
                if isinstance(exc, TimeoutError):
                    raise Unknown(
                        f"failed to create init process I/O: {program} does not become ready"
                    ) from None
                raise
        return cls(pid, end, out, err)

    async def finish(self) -> None:
        """Wait until it ends, as it does at the end of its input; insist after a while."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            await asyncio.wait([self._end], timeout=_LOGGER_SECONDS)
            if self._end.done():
                return
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)
        await self._end


def _pipe(readers: Descriptors, writers: Descriptors) -> tuple[int, int]:
    reader, writer = os.pipe()
    return readers.keep(reader), writers.keep(writer)


def _run_with(command: list[str], descriptors: tuple[int, ...], env: dict[str, str]) -> int:
    """Start `command` with `descriptors` as its numbers 3 and up; its pid. Raises OSError."""
    with closing(Descriptors()) as high:
        # First out of the way of the numbers that they are to have.
        moved = [high.keep(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 16)) for each in descriptors]
        return os.posix_spawn(
            command[0],
            command,
            env,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
                *((os.POSIX_SPAWN_DUP2, there, number) for number, there in enumerate(moved, 3)),
            ],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )


async def readable(descriptor: int) -> None:
    """Wait until there is something, or the end, to be read from `descriptor`."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
