"""Copying between two descriptors, and waiting for one, in the event loop."""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import logging
import math
import os
import stat
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Copy", "readable"]

log = logging.getLogger(__name__)

_CHUNK = 65536
_HELD = 16 << 20
"""Bytes to hold at most: a runtime repeats what is wrong in a specification of ttrpc's 4 MiB."""
_TURNS = 64
"""Pieces to move without letting others run: more than the largest of pipes holds."""
_SETTLE_SECONDS = 2.0
_PATIENCE_SECONDS = 0.3
"""For a client to read on, until it is taken for one that reads only when it is told of the end."""
_REPORT_SECONDS = 10.0
"""Between two lines about output that is dropped."""


class _State(enum.Enum):
    NEW = enum.auto()
    HOLDING = enum.auto()
    """What comes is kept, and not yet written."""
    COPYING = enum.auto()
    LAST = enum.auto()
    """When the source is empty, it has ended."""
    DONE = enum.auto()


class Copy:
    """Copies what comes from `source` to `target`, both of which it closes in the end.

    From a pipe or a file into a pipe, nothing is in this process on its way: if it is killed,
    nothing is lost.

    A target that takes no more for now stops the reading: whoever writes has to wait. What a file
    does not take, on a full disk, is dropped, and the log says how much. Either end may be a file
    that epoll refuses, since it is always ready.

    `about` names it in the log. `at_end` is called when the source has ended, or nobody reads the
    target any more, but not if it is stopped; `changed`, when either end has been closed.
    """

    def __init__(
        self,
        source: int,
        target: int,
        about: str = "",
        at_end: Callable[[], None] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.done = asyncio.Event()
        self._source = source
        self._target = target
        self._about = about
        self._at_end = at_end
        self._changed = changed
        self._state = _State.NEW
        self._frozen = False
        self._rest = bytearray()
        # The kernel moves it.
        self._splices = _is(stat.S_ISFIFO, target) and _is(_can_be_spliced, source)
        # There is something in the source pipe, and no room in the target.
        self._full = False
        # Bytes that have gone: those that were written, and those that were dropped.
        self._passed = 0
        self._dropped = 0
        self._reported = 0.0
        self._loop = asyncio.get_running_loop()
        # Set whenever the target has taken something.
        self._moved = asyncio.Event()
        # What the event loop has been asked to watch.
        self._reading = False
        self._writing = False
        self._pollable = True
        self._soon: asyncio.Handle | None = None

    @property
    def source(self) -> int:
        """-1 when it is closed."""
        return self._source

    @property
    def target(self) -> int:
        """-1 when it is closed."""
        return self._target

    @property
    def started(self) -> bool:
        return self._state not in (_State.NEW, _State.HOLDING)

    def hold(self) -> None:
        """Begin to read, so that nobody has to wait who writes, and write once it is started.

        If it becomes too much, it is started.
        """
        self._begin(_State.HOLDING)

    def start(self) -> None:
        if not self.started:
            self._begin(_State.COPYING)

    def _begin(self, state: _State) -> None:
        if self._state is _State.NEW:
            os.set_blocking(self._source, False)
            os.set_blocking(self._target, False)
        self._state = state
        self._go_on()

    def put(self, data: bytes) -> None:
        """Before anything is read: there is something still to be written."""
        self._rest += data

    def freeze(self) -> bytes:
        """Move nothing until `thaw`; what has been read, and not been written."""
        self._frozen = True
        self._watch()
        return bytes(self._rest)

    def thaw(self) -> None:
        self._frozen = False
        self._watch()

    def finish(self) -> None:
        """Nobody is left who could write what matters: what the source has now is the last."""
        if self._state is _State.COPYING:
            self._state = _State.LAST
            self._go_on()

    def cut(self) -> None:
        """Take what the source has now, and close it."""
        if self.started:
            self._splices = False  # what it has is to be here
            self._catch_up()
            self._close_source()
            self._go_on()

    def stop(self) -> None:
        """Close both ends; what was not copied is lost. Idempotent."""
        self._at_end = None
        self._end()

    async def settle(self) -> None:
        """Wait until what has been written before is copied, or the client takes no more."""
        if not self.started:
            return
        goal = math.inf if self._state is _State.LAST else self._passed + self._left()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not self._catch_up() and self._passed < goal:
                    self._moved.clear()
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        await self._moved.wait()

    # --- moving pieces --------------------------------------------------------------------

    def _go_on(self) -> None:
        """Move a piece, and see to it that this is called when there is another."""
        self._soon = None
        self._move()
        self._watch()

    def _catch_up(self) -> bool:
        """Move what can be moved at once; whether that was all."""
        turns = 0
        while self._move() and turns < _TURNS:
            turns += 1
        self._watch()
        return turns < _TURNS and not self._rest and not self._full

    def _move(self) -> bool:
        """Move a piece; False if nothing has been moved."""
        moved = self._read()
        moved = self._write() or moved
        if self._source < 0 and not self._rest:
            self._end()
        return moved

    def _read(self) -> bool:
        holding = self._state is _State.HOLDING
        if self._source < 0 or (self._rest and not holding):
            return False
        if self._splices and not holding:
            return self._splice()
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            if self._state is _State.LAST:
                self._close_source()
            return False
        except OSError as exc:
            # With EIO a terminal says that nobody has its other side.
            if exc.errno != errno.EIO or not _is(stat.S_ISCHR, self._source):
                log.warning("%s: %s", self._about, exc.strerror)
            data = b""
        if not data:
            self._close_source()
        self._rest += data
        if holding and len(self._rest) >= _HELD:
            self._state = _State.COPYING
        return bool(data)

    def _splice(self) -> bool:
        """Move a piece into the target pipe; False if nothing has been moved."""
        self._full = False
        try:
            moved = os.splice(self._source, self._target, _CHUNK, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._full = self._left() > 0
            if self._state is _State.LAST and not self._full:
                self._close_source()
            return False
        except BrokenPipeError:
            moved = 0  # there will be nobody to write to
        except OSError:
            self._splices = False  # it cannot be, as of some in /proc, or cannot be read at all
            return self._read()
        if not moved:
            self._close_source()
            return False
        self._passed += moved
        self._moved.set()
        return True

    def _write(self) -> bool:
        moved = False
        while self._rest and self.started:
            try:
                written = os.write(self._target, self._rest)
            except BlockingIOError:
                break
            except BrokenPipeError:
                self._rest.clear()
                self._close_source()  # there will be nobody to write to
            except OSError as exc:
                self._drop(exc)
            else:
                moved = True
                self._moved.set()
                self._passed += written
                del self._rest[:written]
                if self._dropped and time.monotonic() >= self._reported + _REPORT_SECONDS:
                    self._report()
        return moved

    def _drop(self, exc: OSError) -> None:
        if not self._dropped and time.monotonic() >= self._reported + _REPORT_SECONDS:
            self._reported = time.monotonic()
            log.error("%s: %s: what comes is dropped", self._about, (exc.strerror or "").lower())
        self._dropped += len(self._rest)
        self._passed += len(self._rest)
        self._rest.clear()

    def _report(self) -> None:
        if self._dropped:
            log.error("%s: %d bytes were dropped", self._about, self._dropped)
        self._dropped = 0
        self._reported = time.monotonic()

    # --- waiting, and the end -------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for whatever is to be ready next."""
        moves = not self._frozen and self._state not in (_State.NEW, _State.DONE)
        to_write = moves and (self._full or (bool(self._rest) and self.started))
        to_read = moves and self._source >= 0 and not to_write
        if to_write != self._writing:
            self._writing = to_write
            if to_write:
                self._loop.add_writer(self._target, self._go_on)
            else:
                self._loop.remove_writer(self._target)
        if to_read != self._reading and self._pollable:
            self._reading = to_read
            try:
                if to_read:
                    self._loop.add_reader(self._source, self._go_on)
                else:
                    self._loop.remove_reader(self._source)
            except PermissionError:  # a file, or a device like one: it is always ready
                self._pollable = self._reading = False
        # Of the last there is, nobody tells that it is the end: that has to be tried.
        at_once = not self._pollable or self._state is _State.LAST
        if to_read and at_once and self._soon is None:
            self._soon = self._loop.call_soon(self._go_on)
        elif self._soon is not None and not moves:
            self._soon.cancel()
            self._soon = None

    def _left(self) -> int:
        """Bytes that have been written by others, and not by us."""
        waiting = bytes(4)
        if self._source >= 0:
            waiting = fcntl.ioctl(self._source, termios.FIONREAD, waiting)
        return len(self._rest) + int.from_bytes(waiting, sys.byteorder)

    def _close_source(self) -> None:
        self._full = False
        if self._source >= 0:
            if self._reading:
                self._loop.remove_reader(self._source)
                self._reading = False
            os.close(self._source)
            self._source = -1
            if self._changed is not None:
                self._changed()

    def _end(self) -> None:
        if self._state is _State.DONE:
            return
        self._state = _State.DONE
        self._rest.clear()
        self._close_source()
        if self._writing:
            self._loop.remove_writer(self._target)
            self._writing = False
        if self._soon is not None:
            self._soon.cancel()
        os.close(self._target)
        self._target = -1
        if self._changed is not None:
            self._changed()
        self._report()
        self._moved.set()
        self.done.set()
        if self._at_end is not None:
            self._at_end()


def _is(kind: Callable[[int], bool], descriptor: int) -> bool:
    return kind(os.fstat(descriptor).st_mode)


def _can_be_spliced(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


async def readable(descriptor: int) -> None:
    """Wait until there is something, or the end, to be read from `descriptor`."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
