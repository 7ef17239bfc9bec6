"""The client's ends of a container's standard streams, which are FIFOs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

__all__ = ["Input", "Output"]

_CHUNK = 65536


class Output:
    """Reads the FIFO `path`, which is made if it is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = b""
        if not path.exists():
            os.mkfifo(path, 0o600)
        # The end comes only after somebody has had it open to write: fifo(7).
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._changed = asyncio.Condition()
        self._ended = False
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def until(self, text: bytes, seconds: float) -> bool:
        """Whether `text` is there within that time."""
        return await self._wait(lambda: text in self.data, seconds)

    async def end(self, seconds: float) -> bool:
        """Whether the end is there within that time: nobody has it open any more."""
        return await self._wait(lambda: self._ended, seconds)

    async def aclose(self) -> None:
        """Be a client that goes."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _wait(self, wanted: object, seconds: float) -> bool:
        assert callable(wanted)
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(wanted)
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended:
            readable = asyncio.Event()
            loop.add_reader(self._fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._fd)
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                continue
            async with self._changed:
                self.data += data
                self._ended = not data
                self._changed.notify_all()


class Input:
    """Writes to the FIFO `path`, which is made if it is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.mkfifo(path, 0o600)
        # To open it for writing alone takes somebody who reads: fifo(7).
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        """Write what fits into a pipe."""
        os.write(self._fd, data)

    async def aclose(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
