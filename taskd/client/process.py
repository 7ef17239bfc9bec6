"""Processes in containers: a container's own, and those that are executed in it beside it."""

from __future__ import annotations

import signal as signals
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from taskd.client import streams
from taskd.client.channel import Channel, naming
from taskd.errors import FailedPrecondition, NotFound, TaskdError
from taskd.proto.containerd.services.tasks.v1 import (
    CloseIoRequest,
    DeleteProcessRequest,
    GetRequest,
    KillRequest,
    ResizePtyRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.wellknown import nanoseconds

if TYPE_CHECKING:
    from taskd.proto.containerd.v1.types import Process as State

__all__ = ["Completed", "Exit", "Process"]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process has ended."""

    code: int
    """Its exit status; 128 and the number for a signal."""
    at: int
    """When, in nanoseconds since the epoch."""

    @property
    def signal(self) -> int | None:
        """What has killed it, as far as its status tells."""
        return self.code - 128 if 128 < self.code < 128 + signals.NSIG else None


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended, and all that it has written."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it has written to its standard output."""
        return self.stdout.decode(errors="replace")


class Process:
    """A process in a container. What its methods raise are the classes of `taskd.errors`."""

    def __init__(
        self,
        channel: Channel,
        container_id: str,
        exec_id: str = "",
        *,
        tty: bool = False,
    ) -> None:
        self.pid = 0
        """0 as long as there is none."""
        self.tty = tty
        self._channel = channel
        self._tasks = TasksStub(channel)
        self._ids = {"container_id": container_id, "exec_id": exec_id}
        self._io = streams.Streams()
        self._exit: Exit | None = None

    def __repr__(self) -> str:
        exec_id = self._ids["exec_id"]
        return f"<{type(self).__name__} {self._ids['container_id']}{exec_id and f'/{exec_id}'}>"

    @property
    def _home(self) -> Path:
        return streams.home(self._channel.path, self._channel.namespace, self._ids["container_id"])

    def give(self, *, stdin: bool, output: bool) -> streams.Streams:
        """New streams, for a process that is not made yet. Raises OSError."""
        if stdin or output:
            self._io = streams.Streams.make(
                self._home, stdin=stdin, output=output, tty=self.tty, close=self._close_stdin
            )
        return self._io

    @property
    def stdin(self) -> streams.Input:
        """Raises `FailedPrecondition` if it has none."""
        if self._io.stdin is None:
            raise FailedPrecondition(f"{self!r} was made without stdin=True", verbatim=True)
        return self._io.stdin

    @property
    def stdout(self) -> streams.Output:
        """Raises `FailedPrecondition` if nobody reads it here."""
        return self._output(self._io.stdout, "standard output")

    @property
    def stderr(self) -> streams.Output:
        """Raises `FailedPrecondition` if nobody reads it here; that of a terminal is `stdout`."""
        return self._output(self._io.stderr, "standard error")

    @property
    def outputs(self) -> Sequence[streams.Output]:
        """Those that are read here: of a terminal one, of a log none."""
        return self._io.outputs

    def _output(self, output: streams.Output | None, name: str) -> streams.Output:
        if output is None:
            why = " of its own: it has a terminal" if self.tty else ' here: see "output" and attach'
            raise FailedPrecondition(f"{self!r} has no {name}{why}", verbatim=True)
        return output

    def lines(self) -> AsyncIterator[str]:
        """What it writes, line by line, from both outputs as it comes, to their ends."""
        if not self._io.outputs:
            self._output(None, "standard output")
        return streams.lines(self._io.outputs)

    async def start(self) -> int:
        """Its pid."""
        with self._naming():
            self.pid = (await self._tasks.start(StartRequest(**self._ids))).pid
        self._io.opened()
        return self.pid

    async def state(self) -> State:
        """What the daemon has to tell of it: its status, its pid, how it has ended."""

        async def get() -> State:
            found: State = (await self._tasks.get(GetRequest(**self._ids))).process
            return found

        with self._naming():
            return await self._channel.persist(get)

    async def wait(self, timeout: float | None = None) -> Exit:
        """Wait until it ends, restarts of the daemon included.

        What it writes meanwhile is taken, so that it need not wait for a reader. Raises
        TimeoutError after `timeout` seconds.
        """
        if self._exit is not None:
            return self._exit
        for output in self._io.outputs:
            output.lift()

        async def wait() -> Exit:
            found = await self._tasks.wait(WaitRequest(**self._ids))
            return Exit(found.exit_status, nanoseconds(found.exited_at))

        with anyio.fail_after(timeout), self._naming():
            self._exit = await self._channel.persist(wait)
        return self._exit

    async def communicate(self, data: bytes | str = b"") -> Completed:
        """Give it `data` to read, if it has an input; wait for its end and all that it writes."""
        out = err = b""

        async def read_out() -> None:
            nonlocal out
            out = await self._io.stdout.read() if self._io.stdout else b""

        async def read_err() -> None:
            nonlocal err
            err = await self._io.stderr.read() if self._io.stderr else b""

        async with anyio.create_task_group() as group:
            group.start_soon(read_out)
            group.start_soon(read_err)
            if self._io.stdin is not None:
                with suppress(BrokenPipeError):
                    await self._io.stdin.write(data)
                await self._io.stdin.aclose()
        return Completed((await self.wait()).code, out, err)

    async def run(self, data: bytes | str = b"") -> Completed:
        """Start it, and wait for its end and all that it writes."""
        await self.start()
        return await self.communicate(data)

    async def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send it a signal. Raises `NotFound` if it has ended."""
        with self._naming():
            await self._tasks.kill(KillRequest(**self._ids, signal=signal, all=False))

    async def stop(self, grace: float = 10.0, signal: int = signals.SIGTERM) -> Exit:
        """Send it `signal`, and SIGKILL if it has not ended `grace` seconds later; how it ended."""
        with suppress(NotFound):
            await self.kill(signal)
        with suppress(TimeoutError):
            return await self.wait(grace)
        with suppress(NotFound):
            await self.kill()
        return await self.wait()

    async def resize(self, width: int, height: int) -> None:
        """Say how many columns and rows its terminal has."""
        with self._naming():
            await self._tasks.resize_pty(ResizePtyRequest(**self._ids, width=width, height=height))

    async def delete(self) -> None:
        """Forget it, once it has ended."""
        with self._naming():
            await self._tasks.delete_process(DeleteProcessRequest(**self._ids))
        self._io.close(remove=True)

    async def leave(self) -> None:
        """End it, whatever it does, and forget it."""
        try:
            with suppress(TaskdError):  # it has ended already, or has not begun
                await self.kill()
                await self.wait()
            with suppress(NotFound):
                await self.delete()
        finally:
            self._io.close(remove=True)

    async def _close_stdin(self) -> None:
        with suppress(NotFound):
            await self._tasks.close_io(CloseIoRequest(**self._ids, stdin=True))

    def _naming(self) -> AbstractContextManager[None]:
        exec_id = self._ids["exec_id"]
        return naming("exec" if exec_id else "container", exec_id or self._ids["container_id"])
