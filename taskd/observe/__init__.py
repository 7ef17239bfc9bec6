"""How a daemon is watched: metrics and traces, each of them off unless the configuration asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from grpclib.const import Cardinality

from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection

__all__ = ["Handler", "Instrument"]

Handler = Callable[[Any], Awaitable[None]]
"""Serves a call on its stream."""


class Instrument(Protocol):
    """Sees every call that clients make, and every one that shims get."""

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        """The handler of a method, watched."""

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        """The connection to the shim of a bundle, watched."""
