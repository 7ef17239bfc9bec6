"""Terminals: received from a runtime or made here, and copied to and from the client's FIFOs.

Source: containerd's ``runtime/v2/runc/platform.go``; the runtime's side is in runc's
``docs/terminals.md``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import socket
import struct
import tempfile
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from taskd.errors import Unknown
from taskd.shim.copying import Copy, readable
from taskd.shim.descriptors import Descriptors
from taskd.shim.stdio import Streams
from taskd.slots import Slots

__all__ = ["Console", "ConsoleSocket", "open_terminal", "take_terminal"]

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
                            await readable(connection.fileno())
        except TimeoutError:
            raise Unknown("failed to retrieve console master: it was not sent") from None
        if not received:
            raise Unknown("failed to retrieve console master: the message has no descriptor")
        os.set_inheritable(received[0], False)
        return received[0]


def open_terminal() -> tuple[int, int]:
    """The two ends, master and slave, of a new terminal."""
    return pty.openpty()


def take_terminal() -> None:
    """Make the standard input, a terminal, that of this process's session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Console:
    """A terminal's master, and the copying between it and the FIFOs."""

    def __init__(self, master: int, streams: Streams) -> None:
        """Raises OSError if there are too many open files; `master` is still the caller's then."""
        reader, writer, _ = streams.descriptors
        self._input: Copy | None = None
        with closing(Descriptors()) as own:
            pairs = [(own.keep(os.dup(master)), own.keep(os.dup(writer)))]
            if streams.has_input:
                pairs.append((own.keep(os.dup(reader)), own.keep(os.dup(master))))
            for descriptor in (each for pair in pairs for each in pair):
                own.give(descriptor)
        self._master = master
        self._streams = streams
        # When nobody has the terminal any more, nobody reads what is typed.
        self._output = Copy(*pairs[0], "a terminal's output", self._ended, self._tell)
        self._output.put(streams.rests.pop(1, b""))
        self._output.start()
        if streams.has_input:
            # Without anybody left who could write, the terminal hangs up.
            self._input = Copy(*pairs[1], "a terminal's input", self.hang_up, self._tell)
            self._input.put(streams.rests.pop(0, b""))
            self._input.start()
        streams.handed()

    @property
    def copies(self) -> Mapping[int, Copy]:
        """As of `Streams`."""
        both = {0: self._input, 1: self._output}
        return {number: copy for number, copy in both.items() if copy is not None}

    def kept(self) -> Slots:
        """All that is open, for another shim: what it makes of it is a terminal like this one."""
        found = self._streams.kept()
        if self._master >= 0:
            found["master"] = self._master
        if self._input is not None and self._input.source >= 0:
            found["0"] = self._input.source
        if self._output.target >= 0:
            found["1"] = self._output.target
        return found

    def _tell(self) -> None:
        if self._streams.changed is not None:
            self._streams.changed()

    def resize(self, width: int, height: int) -> None:
        """Set the window's size in characters. Raises OSError."""
        if self._master >= 0:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close_stdin(self) -> None:
        self._streams.close_stdin()

    def _ended(self) -> None:
        if self._input is not None:
            self._input.stop()

    def hang_up(self) -> None:
        """Close the master: whoever still has the terminal gets SIGHUP."""
        if self._input is not None:
            self._input.stop()
        self._output.cut()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
            self._tell()

    async def settle(self) -> None:
        """The process has ended: let the client read all that it has written, and the end of that.

        Others may still have the terminal, but nobody looks at what they write. A client that does
        not read is not waited for.
        """
        self._output.finish()
        await self._output.settle()

    async def drained(self, timeout: float) -> None:
        """Wait until all output has been copied, for at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._output.done.wait()

    async def aclose(self) -> None:
        """Let go of everything. Idempotent."""
        self.hang_up()
        self._output.stop()
        await self._streams.aclose()
