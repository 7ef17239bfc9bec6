"""How a daemon is watched: metrics and traces, each of them off unless the configuration asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from grpclib.const import Cardinality

from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.ttrpc import Metadata

__all__ = ["Handler", "Instrument", "WatchedConnection"]

Handler = Callable[[Any], Awaitable[None]]
"""Serves a call on its stream."""


class Instrument(Protocol):
    """Sees every call that clients make, and every one that shims get."""

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        """The handler of a method, watched."""

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        """The connection to the shim of a bundle, watched."""


Around = Callable[[str, str, Metadata | None], AbstractContextManager[Metadata | None]]
"""What is done around a call of a service's method; it gives the metadata that is sent."""


class WatchedConnection:
    """A connection with something `around` each of its calls."""

    def __init__(self, connection: Connection, around: Around) -> None:
        self._connection = connection
        self._around = around

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> bytes:
        with self._around(service, method, metadata) as sent:
            return await self._connection.call(
                service, method, payload, timeout=timeout, metadata=sent
            )

    async def wait_closed(self) -> None:
        await self._connection.wait_closed()

    async def aclose(self) -> None:
        await self._connection.aclose()
