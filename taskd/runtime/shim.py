"""One process of a shim, which serves tasks."""

from __future__ import annotations

import enum
import logging
from contextlib import suppress

import anyio

from taskd import ttrpc
from taskd.errors import TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary, TaskApi
from taskd.runtime.held import HeldProcess
from taskd.runtime.shim_log import ShimLog

__all__ = ["Shim", "State"]

log = logging.getLogger(__name__)


class State(enum.Enum):
    SERVING = enum.auto()
    SILENT = enum.auto()
    """It does not answer."""
    ENDING = enum.auto()
    """The daemon itself has begun to end it; its disconnection is expected."""
    GONE = enum.auto()
    """The connection ended, and nobody here had ended it."""


class Shim:
    """A process of a shim, and the connection to it."""

    def __init__(
        self,
        binary: Binary,
        connection: Connection,
        bootstrap: Bootstrap,
        shim_log: ShimLog,
        api: TaskApi,
    ) -> None:
        self.binary = binary
        self.connection = connection
        self.bootstrap = bootstrap
        self.log = shim_log
        self.state = State.SERVING
        # Its process, once it has told its pid.
        self.held: HeldProcess | None = None
        self._api = api

    @property
    def name(self) -> str:
        """For the log."""
        return str(self.binary.bundle.key)

    @property
    def ends(self) -> bool:
        """Whether it is coming to an end, by whatever cause."""
        return self.state in (State.ENDING, State.GONE)

    async def shutdown(self, *, timeout: float) -> bool:
        """Ask the shim to end, for at most `timeout` seconds; whether it agreed."""
        with anyio.move_on_after(timeout):
            try:
                await self._api.shutdown()
            except ttrpc.ConnectionClosed:
                return True  # it ended before it could answer
            except TaskdError as exc:
                log.error("shim %s refused to shut down: %s", self.name, exc)
                return False
            return True
        log.error("shim %s did not shut down in %s s", self.name, timeout)
        return False

    async def hold(self) -> None:
        """Learn which process it is: it may have to be killed when it no longer tells."""
        with suppress(TaskdError, OSError):
            held = HeldProcess(await self._api.connect())
            if self.ends:
                held.release()
            else:
                self.held = held

    async def kill(self, seconds: float) -> bool:
        """Kill its process, if it has told which; False if it has not. Raises OSError."""
        held, self.held = self.held, None
        if held is None:
            return False
        try:
            await held.kill(seconds)
        finally:
            held.release()
        return True

    def release(self) -> None:
        """Let its process be whatever it is."""
        if self.held is not None:
            self.held.release()
            self.held = None

    async def disconnect(self) -> None:
        """Close the connection and the log; calls in flight fail."""
        if self.state is not State.GONE:
            self.state = State.ENDING
        await self.connection.aclose()
        self.log.close()
