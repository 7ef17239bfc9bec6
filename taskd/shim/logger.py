"""Programs that take a container's output: containerd's ``binary://`` URIs.

Source: containerd's ``pkg/process/io.go``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from contextlib import closing, suppress

from taskd.errors import Unknown
from taskd.shim.copying import readable
from taskd.shim.descriptors import Descriptors
from taskd.shim.reaper import Ended, Reaper

__all__ = ["Logger"]

_LOGGER_SECONDS = 10.0
"""For a logger to end after its last line, and once more after SIGTERM."""
_READY_SECONDS = 30.0
"""For a logger to say that it is ready."""


class Logger:
    """A program that takes a container's output: containerd's ``binary://`` URIs.

    It has its standard streams as descriptors 3 and 4, and closes 5 when it is ready.
    """

    def __init__(
        self, pidfd: int, end: asyncio.Future[Ended], stdout: int = -1, stderr: int = -1
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.pidfd = pidfd
        """-1 when it has ended."""
        self._end = end

    @classmethod
    def recovered(cls, pidfd: int, reaper: Reaper) -> Logger:
        """One that a shim had started which has died; the pidfd is the logger's."""
        return cls(pidfd, reaper.end_of(os.dup(pidfd)))

    @classmethod
    async def start(
        cls,
        command: tuple[str, ...],
        id: str,  # noqa: A002
        namespace: str,
        reaper: Reaper,
        own: Descriptors,
    ) -> Logger:
        """Start it and wait until it is ready; what it will read from becomes `own`."""
        program = command[0]
        if not program:
            raise Unknown(
                "failed to create init process I/O: failed to start binary process: "
                "exec: no command"
            )
        whose = {"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace}
        with closing(Descriptors()) as passing:
            out_read, out = _pipe(passing, own)
            err_read, err = _pipe(passing, own)
            ready, told = _pipe(passing, passing)
            try:
                with reaper.starting():
                    pid = _run_with(command, (out_read, err_read, told), whose)
                    # Nobody has reaped it yet.
                    pidfd = passing.keep(os.pidfd_open(pid))
                    end = reaper.end(pid)
            except OSError as exc:
                raise Unknown(
                    "failed to create init process I/O: failed to start binary process: "
                    f"fork/exec {program}: {(exc.strerror or str(exc)).lower()}"
                ) from exc
            passing.drop(out_read, err_read, told)
            try:
                async with asyncio.timeout(_READY_SECONDS):
                    await readable(ready)
            except BaseException as exc:
                if not end.done():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                if isinstance(exc, TimeoutError):
                    raise Unknown(
                        f"failed to create init process I/O: {program} does not become ready"
                    ) from None
                raise
            return cls(passing.give(pidfd), end, out, err)

    async def finish(self) -> None:
        """Wait until it ends, as it does at the end of its input; insist after a while."""
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                await asyncio.wait([self._end], timeout=_LOGGER_SECONDS)
                if self._end.done():
                    return
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, number)
            await self._end
        finally:
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1


def _pipe(readers: Descriptors, writers: Descriptors) -> tuple[int, int]:
    reader, writer = os.pipe()
    return readers.keep(reader), writers.keep(writer)


def _run_with(command: tuple[str, ...], descriptors: tuple[int, ...], env: dict[str, str]) -> int:
    """Start `command` with `descriptors` as its numbers 3 and up; its pid. Raises OSError."""
    with closing(Descriptors()) as high:
        # First out of the way of the numbers that they are to have.
        moved = [high.keep(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 16)) for each in descriptors]
        return os.posix_spawn(
            command[0],
            command,
            env,
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
                *((os.POSIX_SPAWN_DUP2, there, number) for number, there in enumerate(moved, 3)),
            ],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
