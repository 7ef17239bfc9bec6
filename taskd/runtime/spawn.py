"""Running a shim's binary: a short command with input, output, and a deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from taskd import inherited
from taskd.errors import ResourceExhausted

__all__ = ["Completed", "detach", "kill_group", "run"]

_OUTPUT = 16 << 20
"""Bytes that a command may print, which are in memory."""
_LOOK_SECONDS = 0.1
"""Between two looks at how many there are."""


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int
    stdout: bytes
    stderr: bytes
    group: int = field(default=0, compare=False)
    """The process group in which is what it may have left behind; 0 for none."""


async def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes | int = b"",
    merge: bool = False,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run `command` in a process group of its own and wait for its end.

    It reads `stdin`, which is bytes or a descriptor, and has `pass_fds` under their numbers. With
    `merge`, standard error goes to where standard output goes. If the caller is cancelled, the
    group is killed and reaped before the cancellation goes on. Raises OSError if the command
    cannot be started, and `ResourceExhausted` if it prints without end, which ends it, too.

    Output goes to memory files, not pipes: a shim's ``start`` leaves a daemon behind, and one
    that keeps its parent's standard output open must not hold up its caller.
    """
    given = b"" if isinstance(stdin, int) else stdin
    with _memory_file(given) as source, _memory_file() as out, _memory_file() as err:
        process = inherited.popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=stdin if isinstance(stdin, int) else source,
            stdout=out,
            stderr=out if merge else err,
            process_group=0,
            pass_fds=pass_fds,
        )
        try:
            await _exited(process.pid, out, err)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await _exited(process.pid)
            raise
        finally:
            process.wait()
        return Completed(process.returncode, _contents(out), _contents(err), process.pid)


def kill_group(group: int) -> None:
    """Kill what a command has left behind in its group, if anything."""
    if group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def detach(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: Path, descriptor: int
) -> int:
    """Start a process that outlives its caller; returns its pid. It is reaped when it ends.

    It has `descriptor` as its number 3, and writes to `output`. Raises OSError.
    """
    with output.open("wb") as file:
        # The shell moves the descriptor: Python can do so only in a fork of the whole daemon.
        process = inherited.popen(
            ["/bin/sh", "-c", 'exec "$0" "$@" 3<&0 </dev/null', *command],
            cwd=cwd,
            env=dict(env),
            stdin=descriptor,
            stdout=file,
            stderr=file,
            process_group=0,
        )
    ended = os.pidfd_open(process.pid)
    loop = asyncio.get_running_loop()

    def reap() -> None:
        loop.remove_reader(ended)
        os.close(ended)
        process.wait()

    loop.add_reader(ended, reap)
    return process.pid


async def _exited(pid: int, *outputs: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, ended.set)
        while not ended.is_set():
            with anyio.move_on_after(_LOOK_SECONDS if outputs else None):
                await ended.wait()
            if any(os.fstat(each).st_size > _OUTPUT for each in outputs):
                raise ResourceExhausted(f"it printed more than {_OUTPUT} bytes")
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


class _memory_file:
    def __init__(self, contents: bytes = b"") -> None:
        self._fd = os.memfd_create("taskd")
        if contents:
            os.write(self._fd, contents)
            os.lseek(self._fd, 0, os.SEEK_SET)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _contents(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
