"""The server's side of gRPC, on a socket that is bound already."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server as GrpclibServer
from h2.settings import SettingCodes

from taskd.grpc.codecs import Messages

__all__ = ["Servable", "Server", "has_gone"]


class Servable(Protocol):
    """A service: what the bases are that betterproto2 generates."""

    def __mapping__(self) -> Mapping[str, Handler]:
        """Its methods by their paths."""


class Server:
    """Serves `services`."""

    def __init__(self, services: Iterable[Servable]) -> None:
        self._server = _Server(list(services), codec=Messages())

    async def start(self, listener: socket.socket) -> None:
        """Serve the connections to `listener`, which is bound and belongs to the caller."""
        await self._server.start(sock=listener)

    async def close(self) -> None:
        """Stop serving; calls that are left are cancelled."""
        self._server.close()
        await self._server.wait_closed()


def has_gone(stream: Any) -> bool:
    """Whether the client of a call has closed its connection."""
    closing: bool = stream._stream._transport.is_closing()
    return closing


class _Protocol(H2Protocol):
    """grpclib's connection, without h2's limit of 100 calls at once.

    A client such as Docker Engine keeps a ``Wait`` open for each container, on one connection;
    containerd, with grpc-go, knows no limit.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connection._connection.update_settings(
            {SettingCodes.MAX_CONCURRENT_STREAMS: 2**31 - 1}
        )
        self.connection.flush()


class _Server(GrpclibServer):
    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return _Protocol(made.handler, made.config, made.h2_config)
