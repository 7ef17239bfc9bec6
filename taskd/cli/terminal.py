"""This process's terminal and standard streams, for a process in a container."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from taskd.errors import FailedPrecondition, NotFound, TaskdError

if TYPE_CHECKING:
    from taskd.client import Process
    from taskd.client.streams import Output

__all__ = ["Detached", "attached", "require"]

_DETACH = b"\x10\x11"
"""Control-P, control-Q, as with Docker."""
_CHUNK = 1 << 16
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Detached(Exception):
    """Whoever sits at the terminal has asked to be let go; the process goes on."""


def require() -> None:
    """Raise `FailedPrecondition` if standard input is no terminal."""
    if not os.isatty(0):
        raise FailedPrecondition("-t: the standard input is no terminal", verbatim=True)


async def attached(process: Process, *, stdin: bool) -> int:
    """Copy between our standard streams and the process's until it ends; its exit status.

    Signals go to the process; from a terminal it gets the keys instead. Raises `Detached`.
    """
    out = process.stdout
    err = None if process.tty else process.stderr
    with _raw() if process.tty and stdin else _plain():
        try:
            async with anyio.create_task_group() as group:
                if process.tty:
                    group.start_soon(_keep_size, process)
                if not (process.tty and stdin):
                    group.start_soon(_pass_signals, process)
                if stdin:
                    group.start_soon(_write, process, process.tty)
                async with anyio.create_task_group() as outputs:
                    outputs.start_soon(_copy, out, 1)
                    if err is not None:
                        outputs.start_soon(_copy, err, 2)
                code = (await process.wait()).code
                group.cancel_scope.cancel()
        except* Detached:
            raise Detached from None
    return code


async def _copy(output: Output, descriptor: int) -> None:
    while piece := await output.receive():
        _write_all(descriptor, piece)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


async def _write(process: Process, detachable: bool) -> None:
    """What comes on our standard input, to its end."""
    pending = b""
    while True:
        # A file is always ready, and an event loop does not take it.
        with suppress(OSError, ValueError):
            await anyio.wait_readable(0)
        piece = os.read(0, _CHUNK)
        if not piece:
            break
        if detachable:
            piece, pending = _held_back(pending + piece)
        try:
            await process.stdin.write(piece)
        except BrokenPipeError:
            return
        await anyio.lowlevel.checkpoint()
    with suppress(TaskdError):
        await process.stdin.aclose()


def _held_back(data: bytes) -> tuple[bytes, bytes]:
    """What may be sent, and what could be the beginning of the keys to detach."""
    if _DETACH in data:
        raise Detached
    if data.endswith(_DETACH[:1]):
        return data[:-1], data[-1:]
    return data, b""


async def _keep_size(process: Process) -> None:
    """Have the process's terminal be as large as ours."""
    with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
        await _resize(process)
        async for _ in changes:
            await _resize(process)


async def _resize(process: Process) -> None:
    with suppress(OSError, NotFound, FailedPrecondition):
        rows, columns = struct.unpack("4H", fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))[:2]
        if rows and columns:
            await process.resize(columns, rows)


async def _pass_signals(process: Process) -> None:
    with anyio.open_signal_receiver(*_PASSED_ON) as signals:
        async for number in signals:
            with suppress(NotFound):
                await process.kill(number)


@contextmanager
def _raw() -> Iterator[None]:
    """Keys are nobody's but the process's."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _plain() -> Iterator[None]:
    sys.stdout.flush()
    yield
