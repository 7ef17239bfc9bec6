"""Terminals: received from a runtime or made here, and copied to and from the client's FIFOs.

Source: containerd's ``runtime/v2/runc/platform.go``; the runtime's side is in runc's
``docs/terminals.md``.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import socket
import struct
import tempfile
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from taskd.errors import Unknown
from taskd.shim.stdio import Streams

__all__ = ["Console", "ConsoleSocket", "open_terminal"]

_CHUNK = 65536
_RECEIVE_SECONDS = 30.0


class ConsoleSocket:
    """Where a runtime sends the master's end of the terminal that it made."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path = path
        self._listener = listener

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[ConsoleSocket]:
        with tempfile.TemporaryDirectory(prefix="pty") as folder:
            path = Path(folder, "pty.sock")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(1)
                listener.setblocking(False)
                yield cls(path, listener)

    async def receive(self) -> int:
        """The master's descriptor. Raises `Unknown` if none comes."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_RECEIVE_SECONDS):
                connection, _ = await loop.sock_accept(self._listener)
                with connection:
                    while True:
                        try:
                            _, received, _, _ = socket.recv_fds(connection, 4096, 1)
                            break
                        except BlockingIOError:
                            await _readable(connection.fileno())
        except TimeoutError:
            raise Unknown("failed to retrieve console master: it was not sent") from None
        if not received:
            raise Unknown("failed to retrieve console master: the message has no descriptor")
        os.set_inheritable(received[0], False)
        return received[0]


def open_terminal() -> tuple[int, int]:
    """The two ends, master and slave, of a new terminal."""
    return pty.openpty()


class Console:
    """A terminal's master, and the copying between it and the FIFOs."""

    def __init__(self, master: int, streams: Streams) -> None:
        self._master = master
        self._streams = streams
        os.set_blocking(master, False)
        reader, writer, _ = streams.descriptors
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._copies = [_Copy(master, writer, self._ended)]
        if streams.stdin is not None:
            # Without anybody left who could write, the terminal hangs up.
            self._copies.append(_Copy(reader, os.dup(master), self.hang_up, owns_target=True))

    def resize(self, width: int, height: int) -> None:
        """Set the window's size in characters. Raises OSError."""
        if self._master >= 0:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close_stdin(self) -> None:
        self._streams = self._streams.close_stdin()

    def _ended(self) -> None:
        """Nobody has the terminal any more: let the client read the end of its output."""
        for copy in self._copies:
            copy.stop()
        self._streams = self._streams.handed()

    def hang_up(self) -> None:
        """Close the master: whoever still has the terminal gets SIGHUP."""
        for copy in self._copies:
            copy.stop()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    async def drained(self, timeout: float) -> None:
        """Wait until all output has been copied, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._copies[0].done.wait()

    async def aclose(self) -> None:
        self.hang_up()
        await self._streams.aclose()


class _Copy:
    """Copies from one descriptor to another until the end."""

    def __init__(
        self,
        source: int,
        target: int,
        at_end: Callable[[], None] | None = None,
        *,
        owns_target: bool = False,
    ) -> None:
        self.done = asyncio.Event()
        self._source = source
        self._target = target
        self._at_end = at_end
        self._owns_target = owns_target
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.EIO:  # nobody has the terminal's other side
                raise
            data = b""
        if not data:
            self.stop()
            if self._at_end is not None:
                self._at_end()
            return
        self._rest = data
        self._write()

    def _write(self) -> None:
        try:
            self._rest = self._rest[os.write(self._target, self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._rest = b""  # nobody to write to
        # What is not taken stops the reading: the one who writes has to wait.
        if self._rest:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._write)
        elif self._loop.remove_writer(self._target):
            self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        if self.done.is_set():
            return
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        if self._owns_target:
            os.close(self._target)
        self.done.set()


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)
