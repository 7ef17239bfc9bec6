"""What a shim writes into its log, on its way into the daemon's."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress

from taskd.printable import printable
from taskd.runtime.bundle import Bundle

__all__ = ["ShimLog"]

log = logging.getLogger(__name__)

_LINE = 4096
"""Bytes of a line, at most."""
_TURN = 4096
"""Bytes to read without letting others run."""
_BURST = 128 << 10
"""Bytes that are taken over however fast they come: Go's stacks are that long."""
_RATE = 32 << 10
"""Bytes a second that are taken over for ever."""
_PAUSE_SECONDS = 0.05
_DISCARDED = 1 << 20
"""Bytes to throw away after each pause: a shim that writes more has to wait."""


class ShimLog:
    """Copies what a shim writes into its bundle's log FIFO to the daemon's log.

    The FIFO is kept open for writing too: a shim whose daemon restarts must neither block nor
    be killed by SIGPIPE, and its log does not end while another of its processes comes and goes.

    A shim that writes without end takes neither time nor memory from others: what is too much is
    left out, and the log says how much that was.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._name = f"{bundle.namespace}/{bundle.id}"
        self._loop = asyncio.get_running_loop()
        # The beginning of a line, and how many more bytes of it there were.
        self._line = bytearray()
        self._more = 0
        # Bytes that may be taken over now.
        self._allowance = float(_BURST)
        self._then = self._loop.time()
        # While it is throttled, its log is looked at now and then, and thrown away.
        self._throttled: asyncio.TimerHandle | None = None
        self._left_out = 0
        # What comes next is the end of a line that is left out.
        self._mid_line = False
        with suppress(FileExistsError):
            os.mkfifo(bundle.log, 0o700)
        self._fd = os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Take over what is still in the FIFO, and close it. Idempotent."""
        if self._fd < 0:
            return
        if self._throttled is not None:
            self._throttled.cancel()
            self._discard()
        else:
            self._loop.remove_reader(self._fd)
            while self._allowance > 0 and (data := self._next(_TURN)):
                self._take(data)
            self._discard()
        self._end_line()
        self._report()
        os.close(self._fd)
        self._fd = -1

    def _next(self, size: int) -> bytes:
        with suppress(BlockingIOError):
            return os.read(self._fd, size)
        return b""

    # --- taking over ----------------------------------------------------------------------

    def _read(self) -> None:
        now = self._loop.time()
        self._allowance = min(_BURST, self._allowance + (now - self._then) * _RATE)
        self._then = now
        self._take(self._next(_TURN))
        if self._allowance < _TURN:
            self._loop.remove_reader(self._fd)
            self._mid_line = bool(self._line)
            self._end_line()
            self._throttled = self._loop.call_later(_PAUSE_SECONDS, self._look)

    def _take(self, data: bytes) -> None:
        self._allowance -= len(data)
        if self._mid_line:
            end, newline, data = data.partition(b"\n")
            self._left_out += len(end) + len(newline)
            self._mid_line = not newline
        first, *others = data.split(b"\n")
        self._add(first)
        for part in others:
            self._end_line()
            self._add(part)

    def _add(self, part: bytes) -> None:
        room = _LINE - len(self._line)
        self._line += part[:room]
        self._more += max(0, len(part) - room)

    def _end_line(self) -> None:
        if self._line:
            words = printable(self._line.decode(errors="backslashreplace"))
            more = f"… ({self._more} more bytes)" if self._more else ""
            log.info("shim %s: %s%s", self._name, words, more)
        self._line.clear()
        self._more = 0

    # --- leaving out ----------------------------------------------------------------------

    def _look(self) -> None:
        self._allowance += _PAUSE_SECONDS * _RATE
        self._discard()
        if self._allowance >= _BURST / 4:
            self._throttled = None
            self._then = self._loop.time()
            self._report()
            self._loop.add_reader(self._fd, self._read)
        else:
            self._throttled = self._loop.call_later(_PAUSE_SECONDS, self._look)

    def _discard(self) -> None:
        size = 0
        while size < _DISCARDED and (data := self._next(1 << 16)):
            size += len(data)
            self._mid_line = not data.endswith(b"\n")
        self._left_out += size

    def _report(self) -> None:
        if self._left_out:
            log.warning("shim %s: %d bytes of its log are left out", self._name, self._left_out)
        self._left_out = 0
