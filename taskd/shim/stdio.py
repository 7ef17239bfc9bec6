"""A process's standard streams: FIFOs, files, and logger programs.

Where nothing needs copying the process gets the client's FIFO itself. The shim only keeps an end of
each open, so that a client may come and go: what is written while nobody reads waits in the FIFO,
as with containerd's shim, and nobody dies of SIGPIPE. A container that wants `Pipes` gets them, as
from containerd's shim; terminals are in `taskd.shim.console`.
Source: containerd's ``pkg/process/io.go``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from taskd.errors import Unknown
from taskd.shim.copying import Copy
from taskd.shim.reaper import Ended, Reaper

__all__ = ["Logger", "Pipes", "Stdio", "Streams"]

_LOGGER_SECONDS = 10.0
"""For a logger to end after its last line, and once more after SIGTERM."""


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

    def open(self, keep: Callable[[int], int]) -> tuple[int, int]:
        """The two ends of a new one, of which `keep` is told."""
        reader, writer = map(keep, os.pipe())
        for end in (reader, writer):
            os.fchown(end, self.uid, self.gid)
        return reader, writer


@dataclass(frozen=True, slots=True)
class Streams:
    """The standard streams of one process without a terminal."""

    descriptors: tuple[int, int, int]
    """To be given to the process; the shim closes its own when `handed` is called."""
    held: tuple[int, ...] = ()
    """Ends that are kept open until the process is deleted."""
    stdin: int | None = None
    """A writing end of the standard input: without one left, the process reads its end."""
    logger: Logger | None = None
    input: Copy | None = None
    """From the client into a pipe, if the process has that: from `handed` on."""
    outputs: tuple[Copy, ...] = ()
    """The other way."""

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
        opened: list[int] = []

        def keep(descriptor: int) -> int:
            opened.append(descriptor)
            return descriptor

        try:
            return await cls._open(stdio, id, namespace, reaper, pipes, keep)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise

    @classmethod
    async def _open(
        cls,
        stdio: Stdio,
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        pipes: Pipes | None,
        keep: Callable[[int], int],
    ) -> Streams:
        null = keep(os.open(os.devnull, os.O_RDWR))
        given = [null, null, null]
        held: list[int] = []
        copies: list[Copy] = []
        stdin = logger = fed = None
        if stdio.terminal:
            pipes = None

        def output(target: int) -> int:
            """What the process gets to write to `target`."""
            if pipes is None:
                return target
            reader, writer = pipes.open(keep)
            copies.append(Copy(reader, target))
            return writer

        url = urlsplit(stdio.stdout)
        named = [(1, stdio.stdout), (2, stdio.stderr)]
        if url.scheme == "binary":
            logger = await Logger.start(stdio.stdout, id, namespace, reaper, keep)
            given[1:] = logger.stdout, logger.stderr
        elif url.scheme == "file":
            for number, path in named:
                if path:
                    given[number] = output(keep(_append(unquote(url.path))))
        elif url.scheme:
            raise Unknown(f"failed to create init process I/O: unknown STDIO scheme {url.scheme}")
        else:
            for number, path in named:
                if path:
                    writer, *others = _output(path, keep)
                    held += others
                    given[number] = output(writer)
        if stdio.stdin:
            given[0], stdin = _input(stdio.stdin, keep)
            if pipes is not None:
                reader, writer = pipes.open(keep)
                given[0], fed = reader, Copy(given[0], writer)
        if null not in given:
            os.close(null)
        return cls((given[0], given[1], given[2]), tuple(held), stdin, logger, fed, tuple(copies))

    def _copies(self) -> tuple[Copy, ...]:
        return self.outputs if self.input is None else (*self.outputs, self.input)

    def handed(self) -> Streams:
        """The process has its descriptors: let go of ours."""
        _close(self.descriptors)
        for copy in self._copies():
            copy.start()
        return replace(self, descriptors=(-1, -1, -1))

    def close_stdin(self) -> Streams:
        """Let the process read the end of its input, as soon as its clients have gone, too."""
        if self.stdin is not None:
            os.close(self.stdin)
        return replace(self, stdin=None)

    async def drained(self, timeout: float) -> None:
        """Wait until the process's output has been copied, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for copy in self.outputs:
                    if copy.started:
                        await copy.done.wait()

    async def aclose(self) -> None:
        """Let go of everything; a logger is given time to write what it has got."""
        for copy in self._copies():
            copy.stop()
        _close((*self.close_stdin().descriptors, *self.held))
        if self.logger is not None:
            await self.logger.finish()


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in set(descriptors):
        if descriptor >= 0:
            os.close(descriptor)


def _is_fifo(path: str) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    return False


def _output(path: str, keep: Callable[[int], int]) -> tuple[int, ...]:
    """A descriptor to write to `path`, and what has to stay open with it."""
    if not _is_fifo(path):
        try:
            return (keep(os.open(path, os.O_WRONLY | os.O_APPEND)),)
        except OSError as exc:
            raise Unknown(
                "failed to start io pipe copy: unable to copy pipes: containerd-shim: "
                f'opening file "{path}" failed: open {path}: {_reason(exc)}'
            ) from exc
    # With a reader there, opening it for writing does not wait for the client.
    reader = keep(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return keep(os.open(path, os.O_WRONLY)), reader


def _input(path: str, keep: Callable[[int], int]) -> tuple[int, int]:
    """A descriptor to read from the FIFO `path`, and one to write to it."""
    try:
        reader = keep(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        writer = keep(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as exc:
        raise Unknown(f"failed to open stdin fifo {path}: open {path}: {_reason(exc)}") from exc
    os.set_blocking(reader, True)
    return reader, writer


def _append(path: str) -> int:
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as exc:
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
        keep: Callable[[int], int],
    ) -> Logger:
        """Start it and wait until it is ready; `keep` gets what it will write to."""
        parts = urlsplit(uri)
        arguments = [
            each
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
            for each in ((key, value) if value else (key,))
        ]
        program = unquote(parts.path)
        (out_read, out), (err_read, err), (ready, told) = os.pipe(), os.pipe(), os.pipe()
        keep(out)
        keep(err)
        try:
            with reaper.starting():
                pid = _run_with(
                    [program, *arguments],
                    (out_read, err_read, told),
                    {
                        "CONTAINER_ID": id,
                        "CONTAINER_NAMESPACE": namespace,
                    },
                )
                end = reaper.end(pid)
        except OSError as exc:
            os.close(ready)
            raise Unknown(
                "failed to create init process I/O: failed to start binary process: "
                f"fork/exec {program}: {_reason(exc)}"
            ) from exc
        finally:
            for descriptor in (out_read, err_read, told):
                os.close(descriptor)
        await _closed(ready)
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


def _run_with(command: list[str], descriptors: tuple[int, ...], env: dict[str, str]) -> int:
    """Start `command` with `descriptors` as its numbers 3 and up; its pid. Raises OSError."""
    # First out of the way of the numbers that they are to have.
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 16) for each in descriptors]
    try:
        return os.posix_spawn(
            command[0],
            command,
            env,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
                *((os.POSIX_SPAWN_DUP2, there, number) for number, there in enumerate(high, 3)),
            ],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        for each in high:
            os.close(each)


async def _closed(descriptor: int) -> None:
    """Wait for a byte, or the end, of what `descriptor` reads; and close it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
