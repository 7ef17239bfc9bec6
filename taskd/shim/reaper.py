"""Every process whose parent this one is, by birth or by adoption: how they are started and end.

A container's process is started by a runtime that then goes; as a *sub-reaper* (prctl(2)) a shim
becomes its parent, and learns how it ended. Of the processes of a shim that has died, whose parent
nobody can become, it learns by their pidfds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from taskd import inherited, pidfd

__all__ = ["UNSEEN", "Completed", "Ended", "Reaper"]

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5)
"""Pauses between looks at one that has ended, and of which it is not told yet how."""
UNSEEN = 255
"""containerd's status for an exit that nobody saw."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit status (128 and the signal's number for a signal), and when."""

    status: int
    at: int
    """Nanoseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What became of a command."""

    status: int
    """As a shell says it: 128 and the signal's number for a signal."""
    output: bytes
    """What it wrote to its standard output."""
    errors: bytes
    """What it wrote to its standard error."""


class Reaper:
    """Reaps all children of this process; there can be only one."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[Ended]] = {}
        # Ends that came before anybody could ask for them, while something is being started.
        self._early: dict[int, Ended] = {}
        self._starting = 0
        # Ends of those that are no children.
        self._foreign: dict[int, asyncio.Future[Ended]] = {}

    def install(self) -> None:
        """Become a sub-reaper, and reap from now on, in the event loop that runs."""
        _adopt(True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def uninstall(self) -> None:
        """Be an ordinary process again."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        _adopt(False)

    def reap(self) -> None:
        """Take note of everyone who has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            ended = Ended(_exit_status(status), time.time_ns())
            awaited = self._awaited.pop(pid, None)
            if awaited is not None:
                if not awaited.done():
                    awaited.set_result(ended)
            elif self._starting:
                self._early[pid] = ended

    def adopt(self, pid: int, descriptor: int) -> None:
        """Answer `end` for a process that is no child, of which the caller gives a pidfd away."""
        self._foreign[pid] = self.end_of(descriptor)

    def end_of(self, descriptor: int) -> asyncio.Future[Ended]:
        """The end of any process, whose pidfd is the reaper's from now on."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ended] = loop.create_future()
        loop.add_reader(descriptor, self._look, descriptor, future, 0)
        return future

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While a process is started whose pid is not known yet: it may end at once."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._early.clear()

    def end(self, pid: int) -> asyncio.Future[Ended]:
        """The end of a child, to be asked for once, before `starting` is left; or of one that was
        adopted.
        """
        if pid in self._foreign:
            return self._foreign.pop(pid)
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        if pid in self._early:
            future.set_result(self._early.pop(pid))
        else:
            self._awaited[pid] = future
        return future

    def _look(self, descriptor: int, future: asyncio.Future[Ended], looks: int) -> None:
        """Find out how a process ended whose pidfd is readable."""
        loop = asyncio.get_running_loop()
        if not looks:
            loop.remove_reader(descriptor)
        # Looked for first: it may be reaped between the two.
        reaped = pidfd.pid_of(descriptor) < 0
        status = pidfd.exit_status(descriptor)
        if status is None and not reaped:
            pause = _LOOK_SECONDS[min(looks, len(_LOOK_SECONDS) - 1)]
            loop.call_later(pause, self._look, descriptor, future, looks + 1)
            return
        os.close(descriptor)
        if not future.done():
            how = UNSEEN if status is None else _exit_status(status)
            future.set_result(Ended(how, time.time_ns()))

    async def run(
        self,
        command: Sequence[str],
        *,
        stdio: tuple[int, int, int] | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Completed:
        """Run `command` to its end. Its output is kept, or goes to the descriptors of `stdio`.

        If the caller is cancelled, it is killed. Raises OSError if it cannot be started.
        """
        with _memory_file(stdin) as given, _memory_file() as out, _memory_file() as err:
            with self.starting():
                process = inherited.popen(
                    command,
                    stdin=stdio[0] if stdio else given,
                    stdout=stdio[1] if stdio else out,
                    stderr=stdio[2] if stdio else err,
                    env=env,
                    pass_fds=pass_fds,
                )
                end = self.end(process.pid)
            # Nobody but the reaper asks for its end.
            process.returncode = 0
            try:
                ended = await asyncio.shield(end)
            except BaseException:
                if not end.done():
                    os.kill(process.pid, signal.SIGKILL)
                    # Its end is noted without us.
                raise
            return Completed(ended.status, _contents(out), _contents(err))


def _adopt(yes: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _exit_status(status: int) -> int:
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


@contextmanager
def _memory_file(contents: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("shim")
    try:
        if contents:
            os.write(descriptor, contents)
            os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _contents(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0) if size else b""
