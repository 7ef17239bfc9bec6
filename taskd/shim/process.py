"""One process of a container, and the states that it goes through.

Source: containerd's ``pkg/process`` (init_state.go, exec_state.go), v1.7.24.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskd.errors import InvalidArgument, NotFound, Unknown

if TYPE_CHECKING:
    from taskd.shim.console import Console
    from taskd.shim.reaper import Ended
    from taskd.shim.stdio import Stdio, Streams
    from taskd.slots import Slots

__all__ = ["Process", "Status"]

_DRAIN_SECONDS = 10.0
"""For a client to take what a process has written before it is deleted, as in containerd."""

_AUTHORS = "author."
"""Begins names of slots that are not the SDK's."""


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
        self.doing = ""
        """What is under way that changes its status, if anything is."""
        self.started = 0
        """When the process was, as the kernel counts; 0 if nobody had to know."""
        self.pidfd = -1
        """Held as long as it may have to be given to another shim."""
        self.recovered: Slots = {}
        """What another shim had kept with `keep`: to be taken with `take`."""
        self._more: Slots = {}
        # What has been read of its streams, and not been written, as long as it is frozen.
        self._rests: Slots = {}
        # Who writes down what becomes of it, and who keeps what it has open.
        self.noted: Callable[[], None] = _nothing
        self._opened: Callable[[], None] = _nothing

    # --- what becomes of it ---------------------------------------------------------------

    def refuse(self, doing: str, *states: Status, of: str = "process") -> None:
        """Raise containerd's error if it is in one of `states`, or deleted."""
        if self.status is Status.DELETED:
            if doing == "delete":
                raise NotFound("cannot delete a deleted process")
            raise Unknown(f"cannot {doing} a deleted process")
        if self.status in states:
            raise Unknown(f"cannot {doing} a {self.status.name.lower()} {of}")

    @contextmanager
    def changing(self, doing: str) -> Iterator[None]:
        """While something is under way that may change its status."""
        self.doing = doing
        self.noted()
        try:
            yield
        finally:
            if self.doing:  # it has not
                self.doing = ""
                self.noted()

    def begun(self) -> None:
        """It runs: it was started, or resumed, or is not paused after all."""
        self._is_now(Status.RUNNING)

    def pausing(self) -> None:
        self._is_now(Status.PAUSING, "pause")

    def paused(self) -> None:
        self._is_now(Status.PAUSED)

    def stopped(self, ended: Ended) -> None:
        self.exit_status = ended.status
        # One that was ended by its deletion has no time (deletedState in containerd's
        # init_state.go).
        if self.status is not Status.DELETED:
            self.exited_at = ended.at
            self._is_now(Status.STOPPED)

    def deleted(self) -> None:
        self._is_now(Status.DELETED)

    def _is_now(self, status: Status, doing: str = "") -> None:
        self.status = status
        self.doing = doing
        self.noted()

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
        self._opened()

    def handed(self) -> None:
        """It has its streams: nothing of them is to be held here that it alone is to have."""
        if self.streams is not None:
            self.streams.handed()
        else:
            self._opened()

    def close_stdin(self) -> None:
        if self._io is not None:
            self._io.close_stdin()

    async def settle(self) -> None:
        """It has ended: wait until its clients can read all that it has written."""
        if self._io is not None:
            await self._io.settle()

    async def release(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Close all that was opened for it, when its output is copied, or after that time."""
        io = self._io
        if io is not None:
            await io.drained(seconds)
        self.console = self.streams = None
        # First: a logger does not read the end of its input while a daemon keeps the other one.
        self._opened()
        if io is not None:
            await io.aclose()

    # --- what another shim would need of it -----------------------------------------------

    @property
    def copied(self) -> bool:
        """Its streams, or some of them, go through this process."""
        return self.stdio.terminal or (self._io is not None and bool(self._io.copies))

    def freeze(self) -> None:
        """Let nothing go through this process, and have kept what is in it, until `thaw`."""
        from taskd.shim.stdio import keep_rest

        if self._io is not None:
            for number, copy in self._io.copies.items():
                if rest := copy.freeze():
                    self._rests |= keep_rest(number, rest)
            self._opened()

    def thaw(self) -> None:
        rests, self._rests = self._rests, {}
        for descriptor in rests.values():
            os.close(descriptor)
        if self._io is not None:
            self._opened()
            for copy in self._io.copies.values():
                copy.thaw()

    def keep(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept for another shim, for as long as it is open here."""
        self._more[name] = descriptor
        self._opened()

    def drop(self, name: str) -> None:
        """It is closed, or about to be."""
        if self._more.pop(name, None) is not None:
            self._opened()

    def take(self, name: str) -> int:
        """What another shim has had kept under that name, the caller's from now on; or -1."""
        descriptor = self.recovered.pop(name, -1)
        if descriptor >= 0:
            self.keep(name, descriptor)
        return descriptor

    def regard(self, noted: Callable[[], None], opened: Callable[[], None]) -> None:
        """Have them called when its status, and what it has open, are not the same any more."""
        self.noted, self._opened = noted, opened

    def disregard(self) -> None:
        self.noted = self._opened = _nothing

    def opened(self) -> None:
        """What it has open is not the same any more."""
        self._opened()

    def kept(self) -> Slots:
        """All that it has open."""
        found = {f"{_AUTHORS}{name}": each for name, each in self._more.items()}
        if self.pidfd >= 0:
            found["pid"] = self.pidfd
        if self._io is not None:
            found |= self._io.kept()
        return found | self._rests

    def recover(self, slots: Slots, streams: Streams | None) -> None:
        """Have what another shim had kept of it."""
        self.pidfd = slots.pop("pid", -1)
        self.recovered = {
            name.removeprefix(_AUTHORS): slots.pop(name)
            for name in tuple(slots)
            if name.startswith(_AUTHORS)
        }
        master = slots.pop("master", -1)
        self.streams = streams
        if master >= 0:
            self.attach(master)

    def let_go(self) -> None:
        """It has ended, which has been written down, or others see to it."""
        for descriptor in self.recovered.values():
            os.close(descriptor)
        self.recovered = {}
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
            self._opened()

    @property
    def _io(self) -> Console | Streams | None:
        return self.streams if self.console is None else self.console


def _nothing() -> None:
    """Nobody has to know."""
