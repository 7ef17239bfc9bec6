"""Copying between two descriptors, in the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

__all__ = ["Copy"]

_CHUNK = 65536


class Copy:
    """Copies what comes from `source` to `target`, both of which it closes in the end.

    `at_end` is called when the source has ended, but not if it is stopped.
    """

    def __init__(self, source: int, target: int, at_end: Callable[[], None] | None = None) -> None:
        self.done = asyncio.Event()
        self.started = False
        self._source = source
        self._target = target
        self._at_end = at_end
        self._rest = b""
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        if not self.started and not self.done.is_set():
            self.started = True
            os.set_blocking(self._source, False)
            os.set_blocking(self._target, False)
            self._loop.add_reader(self._source, self._read)

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
        """Close both ends; what was not copied is lost."""
        if self.done.is_set():
            return
        self.done.set()
        if self.started:
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._target)
        os.close(self._source)
        os.close(self._target)
