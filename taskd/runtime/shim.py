"""One process of a shim, and who lives in it."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
from anyio import to_thread

from taskd.errors import TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary
from taskd.runtime.held import HeldProcess, listening
from taskd.runtime.line import Line
from taskd.runtime.shim_log import ShimLog
from taskd.runtime.types import Key

__all__ = ["Landlord", "Shim", "State", "Tenant"]


class State(enum.Enum):
    SERVING = enum.auto()
    SILENT = enum.auto()
    """It has not answered, or not yet."""
    ENDING = enum.auto()
    """The daemon itself has begun to end it; its disconnection is expected."""
    GONE = enum.auto()
    """The connection ended, and nobody here had ended it; or there never was one."""


class Landlord(Protocol):
    """Decides when a process ends that goes on without tenants."""

    def vacated(self, shim: Shim) -> None:
        """A tenant has left."""

    def died(self, shim: Shim) -> None: ...

    def shut(self, shim: Shim) -> None:
        """Put nothing into it any more, and end it if nothing is in it."""

    def reopen(self, shim: Shim) -> None:
        """Put more into it again."""


class Tenant:
    """What lives in a shim's process, such as a task: all that is known here is its bundle."""

    def __init__(self, bundle: Bundle, shim: Shim) -> None:
        self.bundle = bundle
        self.shim = shim
        shim.tenants[bundle.path] = self
        # The shim's executable, to be called for this bundle.
        self.binary: Binary | None = None
        self.log: ShimLog | None = None
        # Called when the process has died, for somebody to take this tenant down.
        self.lost: Callable[[], None] | None = None
        # Whether a process that goes on has it: raises `NotFound` if not. If none is given, it is
        # asked for a task.
        self.ask: Callable[[Connection], Awaitable[None]] | None = None
        # It was not started here, but made in the process of a sandbox.
        self.sandboxed = False

    @property
    def key(self) -> Key:
        return self.bundle.key

    def move(self, shim: Shim) -> None:
        del self.shim.tenants[self.bundle.path]
        self.shim = shim
        shim.tenants[self.bundle.path] = self


class Shim:
    """A process that serves, or served, its tenants; see `taskd.runtime.shims.Shims`."""

    def __init__(self, address: str, socket: Path, state: State) -> None:
        self.address = address
        self.socket = socket
        """Where it listens, or must have listened if it was killed before it could say."""
        self.state = state
        # What its `start` printed, if it came to that.
        self.bootstrap: Bootstrap | None = None
        self.connection: Line | None = None
        # By their bundles: a task may have its sandbox's name.
        self.tenants: dict[Path, Tenant] = {}
        # A client has named it, and it is not ours to kill.
        self.foreign = False
        # Of a process that goes on without tenants: its folder, and who decides when it ends.
        self.home: Bundle | None = None
        self.landlord: Landlord | None = None
        # Where it writes: the log of whoever came first, and may leave first.
        self.log: ShimLog | None = None
        # Nothing of it is left, and another one may listen at its address.
        self.gone = anyio.Event()
        self.killing = anyio.Lock()
        self.killed = False
        # It was asked to leave what lives in it to another process.
        self.dismissed = False
        # Its process, once it has told its pid.
        self._held: HeldProcess | None = None
        # That is so, or it never will be.
        self._told = anyio.Event()

    @property
    def name(self) -> str:
        """For the log."""
        if self.home is not None:
            return str(self.home.key)
        names = [str(tenant.key) for tenant in self.tenants.values()]
        return names[0] if len(names) == 1 else f"of {', '.join(names) or self.address}"

    @property
    def pid(self) -> int:
        """Of its process, once it has told it; until then 0."""
        return self._held.pid if self._held is not None else 0

    @property
    def ends(self) -> bool:
        """Whether it is coming to an end, by whatever cause."""
        return self.state in (State.ENDING, State.GONE)

    def leave(self, tenant: Tenant) -> bool:
        """Let a tenant go; whether it was the last, with which a process has to end."""
        self.tenants.pop(tenant.bundle.path, None)
        if tenant.log is not None and tenant.log is not self.log:
            tenant.log.close()
        if self.tenants or (self.home is not None and not self.ends):
            return False
        if self.state is not State.GONE:
            self.state = State.ENDING
        return True

    def go_on(self, bootstrap: Bootstrap, connection: Connection, first: Tenant) -> None:
        """Another process goes on where this one has died; it writes to the log of that tenant."""
        assert self.connection is not None
        self.bootstrap = bootstrap
        self.killed = self.dismissed = False
        if self.home is None:
            if self.log and all(each.log is not self.log for each in self.tenants.values()):
                self.log.close()
            self.log = first.log
        self.connection.go_on(connection)

    async def hold(self, pid: Callable[[], Awaitable[int]], patience: float) -> None:
        """Learn which process it is: it may have to be killed when it no longer tells.

        If it has not told for so many seconds, it is the one that listens on its socket.
        """
        with suppress(TaskdError, OSError):
            held = None
            with anyio.move_on_after(patience), suppress(TaskdError, OSError):
                held = HeldProcess(await pid())
            if held is None and not self.ends:
                held = await to_thread.run_sync(_listener, self.socket)
            if held is None:
                held = HeldProcess(await pid())
            if self.ends:
                held.release()
            else:
                self._held = held
                self._told.set()

    async def told_pid(self) -> int:
        """Wait until it has told its pid; 0 if it has gone."""
        await self._told.wait()
        return self.pid

    async def kill(self, seconds: float) -> bool:
        """Kill its process, if it has told which; False if it has not. Raises OSError."""
        held, self._held = self._held, None
        if held is None:
            return False
        self._told = anyio.Event()
        try:
            await held.kill(seconds)
        finally:
            held.release()
        return True

    async def ended(self, seconds: float) -> None:
        """Wait for the end of its process, if it has told which, and for so long at most."""
        if self._held is None:
            await anyio.sleep(seconds)
        else:
            await self._held.ended(seconds)

    async def disconnect(self) -> None:
        """Close the connection and the log; calls in flight fail."""
        if self.state is not State.GONE:
            self.state = State.ENDING
        if self.connection is not None:
            await self.connection.aclose()
        for log in (self.log, *(tenant.log for tenant in self.tenants.values())):
            if log is not None:
                log.close()

    def forget(self) -> None:
        """Let its process be whatever it is, and who waits for its end go on."""
        if self._held is not None:
            self._held.release()
            self._held = None
        self._told.set()
        self.gone.set()


def _listener(socket: Path) -> HeldProcess | None:
    """The only one that there is. Not the connection's peer, which may be who called listen(2)."""
    found = listening(socket)
    if len(found) == 1:
        return found[0]
    for each in found:
        each.release()
    return None
