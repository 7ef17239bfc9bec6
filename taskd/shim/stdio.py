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
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from taskd.errors import Unknown
from taskd.shim.copying import Copy
from taskd.shim.descriptors import Descriptors
from taskd.shim.logger import Logger
from taskd.shim.output import Output
from taskd.shim.reaper import Reaper
from taskd.slots import Slots

__all__ = ["Pipes", "Stdio", "Streams", "keep_rest"]

_NAMES = ("standard input", "standard output", "standard error")
_ERROR = 2
# Of slots in which what is open is kept; there are "stdin" and "logger" besides, and numbers.
_END, _SOURCE, _TARGET, _REST = "end.", ".source", ".target", ".rest"
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
        # An ordinary user's are that user's, whom a container may take for root.
        if os.geteuid() == 0 or (self.uid, self.gid) != (0, 0):
            for end in (reader, writer):
                os.fchown(end, self.uid, self.gid)
        return reader, writer


class Streams:
    """The standard streams of one process, or what a terminal is copied to and from.

    Whatever has been opened is closed once, however it ends.
    """

    def __init__(self, changed: Callable[[], None] | None = None) -> None:
        """`changed` is called when something of it has been closed."""
        self.changed = changed
        self.descriptors = (-1, -1, -1)
        """To be given to the process; the shim closes its own when `handed` is called."""
        self.has_input = False
        # Ends that are kept open until the process is deleted are in here as well.
        self._own = Descriptors()
        # A writing end of the standard input: without one left, the process reads its end.
        self._stdin = -1
        self._logger: Logger | None = None
        # From the client into a pipe, and the other way, if the process has pipes: by the number
        # that the process has for it.
        self._copies: dict[int, Copy] = {}
        self.rests: dict[int, bytes] = {}
        """What another shim had read for a terminal, and not written."""

    @classmethod
    async def open(
        cls,
        stdio: Stdio,
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        pipes: Pipes | None = None,
        changed: Callable[[], None] | None = None,
    ) -> Streams:
        """Raises `Unknown`, which names the path, if one cannot be opened."""
        streams = cls(changed)
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
        output = Output.named(stdio.stdout)
        if output.scheme == "binary":
            command = (output.path, *output.arguments)
            self._logger = await Logger.start(command, id, namespace, reaper, own)
            given[1:] = self._logger.stdout, self._logger.stderr
            named = {}
        elif output.scheme == "file":
            _make(output.path)
            named = {number: output.path for number, name in named.items() if name}
        elif output.scheme:
            raise Unknown(
                f"failed to create init process I/O: unknown STDIO scheme {output.scheme}"
            )
        for number, path in named.items():
            if not path:
                continue
            given[number] = target = _output(path, own, doing)
            if pipes is not None:
                reader, given[number] = pipes.open(own)
                about = f"{id}: {_NAMES[number]} to {path}"
                self._copy(number, own.give(reader), own.give(target), about)
        if stdio.stdin:
            self.has_input = True
            given[0], self._stdin = _input(stdio.stdin, own)
            if pipes is not None:
                source = given[0]
                given[0], target = pipes.open(own)
                about = f"{id}: {_NAMES[0]} from {stdio.stdin}"
                self._copy(0, own.give(source), own.give(target), about)
        self.hold()
        if null not in given:
            own.drop(null)
        self.descriptors = (given[0], given[1], given[2])

    @classmethod
    def recovered(
        cls,
        slots: Slots,
        id: str,  # noqa: A002
        reaper: Reaper,
        changed: Callable[[], None],
    ) -> Streams:
        """Those of another shim, from what was `kept`, which is taken out of `slots`.

        What was copied is copied on when `handed` is called.
        """
        streams = cls(changed)
        own = streams._own
        streams._stdin = own.keep(slots.pop("stdin")) if "stdin" in slots else -1
        given = [own.keep(slots.pop(name)) if name in slots else -1 for name in ("0", "1", "2")]
        streams.has_input = given[0] >= 0
        if max(given) >= 0 or "master" in slots:
            null = own.keep(os.open(os.devnull, os.O_RDWR))
            given = [null if each < 0 else each for each in given]
        streams.descriptors = (given[0], given[1], given[2])
        if "logger" in slots:
            streams._logger = Logger.recovered(slots.pop("logger"), reaper)
        for name in [name for name in slots if name.startswith(_END)]:
            own.keep(slots.pop(name))
        streams.rests = dict(_rests(slots))
        for number in range(len(_NAMES)):
            source, target = (slots.pop(f"{number}{each}", -1) for each in (_SOURCE, _TARGET))
            if source >= 0 and target >= 0:
                copy = streams._copy(number, source, target, f"{id}: {_NAMES[number]}")
                copy.put(streams.rests.pop(number, b""))
            elif max(source, target) >= 0:  # the end of the other one had been read
                os.close(max(source, target))
        return streams

    @property
    def copies(self) -> Mapping[int, Copy]:
        """What goes through this process, by the number that the container's has for it."""
        return self._copies

    def kept(self) -> Slots:
        """All that is open, for another shim."""
        found = {str(number): each for number, each in enumerate(self.descriptors) if each >= 0}
        if self._stdin >= 0:
            found["stdin"] = self._stdin
        found |= {f"{_END}{each}": each for each in self._own if each not in found.values()}
        for number, copy in self._copies.items():
            ends = {_SOURCE: copy.source, _TARGET: copy.target}
            found |= {f"{number}{name}": each for name, each in ends.items() if each >= 0}
        if self._logger is not None and self._logger.pidfd >= 0:
            found["logger"] = self._logger.pidfd
        return found

    def _copy(self, number: int, source: int, target: int, about: str) -> Copy:
        copy = self._copies[number] = Copy(source, target, about, changed=self._tell)
        return copy

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()

    def hold(self) -> None:
        """Take what a runtime says on the standard error, which may be more than a pipe takes.

        It is written when `handed` is called: if the runtime fails it is not the process's.
        """
        if _ERROR in self._copies:
            self._copies[_ERROR].hold()

    def handed(self) -> None:
        """The process has its descriptors: let go of ours, and copy from now on."""
        self._own.drop(*self.descriptors)
        self.descriptors = (-1, -1, -1)
        for copy in self._copies.values():
            copy.start()
        self._tell()

    def close_stdin(self) -> None:
        """Let the process read the end of its input, as soon as its clients have gone, too."""
        self._own.drop(self._stdin)
        self._stdin = -1
        self._tell()

    def _outputs(self) -> list[Copy]:
        return [copy for number, copy in self._copies.items() if number]

    async def settle(self) -> None:
        """The process has ended: wait until a client can read all that it has written.

        One that does not read is not waited for.
        """
        await asyncio.gather(*(copy.settle() for copy in self._outputs()))

    async def drained(self, timeout: float) -> None:
        """Wait until the process's output has been copied, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for copy in self._outputs():
                    if copy.started:
                        await copy.done.wait()

    async def aclose(self) -> None:
        """Let go of everything; a logger is given time to write what it has got. Idempotent."""
        self.changed = None
        for copy in self._copies.values():
            copy.stop()
        self._own.close()
        self.descriptors = (-1, -1, -1)
        if self._logger is not None:
            await self._logger.finish()


def keep_rest(number: int, rest: bytes) -> Slots:
    """The slot for what has been read of a stream, and not written."""
    descriptor = os.memfd_create("rest")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(rest)
    except BaseException:
        os.close(descriptor)
        raise
    return {f"{number}{_REST}": descriptor}


def _rests(slots: Slots) -> Iterator[tuple[int, bytes]]:
    """What those slots had, which are taken out."""
    for name in [name for name in slots if name.endswith(_REST)]:
        descriptor = slots.pop(name)
        try:
            yield int(name.removesuffix(_REST)), os.pread(descriptor, _size(descriptor), 0)
        finally:
            os.close(descriptor)


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


@contextmanager
def _place(path: str) -> Iterator[tuple[str, bool]]:
    """Another name for what is at `path` now, and whether it is a FIFO.

    What is opened by that name is what has been looked at, though `path` may be another's by then:
    to open a FIFO that nobody reads would hold up everybody.
    """
    if "\0" in path:  # Python would not ask the kernel
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
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
