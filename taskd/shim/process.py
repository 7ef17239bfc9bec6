"""One process of a container, and the states that it goes through.

Source: containerd's ``pkg/process`` (init_state.go, exec_state.go), v1.7.24.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskd.errors import InvalidArgument, NotFound, Unknown

if TYPE_CHECKING:
    from taskd.shim.console import Console
    from taskd.shim.reaper import Ended
    from taskd.shim.stdio import Stdio, Streams

__all__ = ["Process", "Status"]

_DRAIN_SECONDS = 10.0
"""For a client to take what a process has written before it is deleted, as in containerd."""


class Status(enum.IntEnum):
    """State of a process; the numbers are those of ``containerd.v1.types.Status``."""

    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5
    DELETED = -1
    """Gone: only calls that were under way still see it."""


class Process:
    """One process of a container: its init, or an exec."""

    def __init__(self, id: str, spec: Mapping[str, Any], stdio: Stdio) -> None:  # noqa: A002
        import asyncio

        from taskd.wellknown import GO_ZERO

        self.id = id
        """The exec's id; empty for the init process."""
        self.spec = spec
        """``process`` of the OCI runtime specification (config.md, "Process")."""
        self.stdio = stdio
        self.pid = 0
        self.status = Status.CREATED
        self.exit_status = 0
        self.exited_at = GO_ZERO
        """Nanoseconds since the epoch."""
        self.streams: Streams | None = None
        """What to give to the process as its standard streams, unless it has a terminal."""
        self.console: Console | None = None
        self.gone = asyncio.Event()
        """It has ended."""
        self.ended = asyncio.Event()
        """That has been told to the daemon, too, which may have had to wait."""
        self.lock = asyncio.Lock()

    # --- what becomes of it ---------------------------------------------------------------

    def refuse(self, doing: str, *states: Status, of: str = "process") -> None:
        """Raise containerd's error if it is in one of `states`, or deleted."""
        if self.status is Status.DELETED:
            if doing == "delete":
                raise NotFound("cannot delete a deleted process")
            raise Unknown(f"cannot {doing} a deleted process")
        if self.status in states:
            raise Unknown(f"cannot {doing} a {self.status.name.lower()} {of}")

    def begun(self) -> None:
        """It runs: it was started, or resumed, or is not paused after all."""
        self.status = Status.RUNNING

    def pausing(self) -> None:
        self.status = Status.PAUSING

    def paused(self) -> None:
        self.status = Status.PAUSED

    def stopped(self, ended: Ended) -> None:
        self.exit_status = ended.status
        # One that was ended by its deletion has no time (deletedState in containerd's
        # init_state.go).
        if self.status is not Status.DELETED:
            self.status = Status.STOPPED
            self.exited_at = ended.at

    def deleted(self) -> None:
        self.status = Status.DELETED

    # --- what it is -----------------------------------------------------------------------

    @property
    def args(self) -> list[str]:
        """The program to run, and its arguments. Raises `InvalidArgument` if there is none."""
        args = [str(each) for each in self.spec.get("args") or ()]
        if not args:
            raise InvalidArgument("args must not be empty")
        return args

    @property
    def env(self) -> dict[str, str]:
        """Its environment."""
        pairs = (str(each).partition("=") for each in self.spec.get("env") or ())
        return {name: value for name, _, value in pairs}

    @property
    def cwd(self) -> str:
        """The folder to run it in, as the container sees it."""
        return self.spec.get("cwd") or "/"

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """The standard streams of a process that is being started without a terminal."""
        assert self.streams is not None
        return self.streams.descriptors

    # --- its streams ----------------------------------------------------------------------

    def attach(self, master: int) -> None:
        """From now on, copy between a terminal's `master` and the client."""
        from taskd.shim.console import Console

        assert self.streams is not None
        try:
            self.console, self.streams = Console(master, self.streams), None
        except BaseException:
            os.close(master)
            raise

    def close_stdin(self) -> None:
        if self._io is not None:
            self._io.close_stdin()

    async def settle(self) -> None:
        """It has ended: wait until its clients can read all that it has written."""
        if self._io is not None:
            await self._io.settle()

    async def release(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Close all that was opened for it, when its output is copied, or after that time."""
        if self._io is not None:
            await self._io.drained(seconds)
            await self._io.aclose()
        self.console = self.streams = None

    @property
    def _io(self) -> Console | Streams | None:
        return self.streams if self.console is None else self.console
