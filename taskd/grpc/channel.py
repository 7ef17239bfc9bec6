"""The clients' side of gRPC: a channel to a unix socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self, cast

import grpclib.client
import grpclib.protocol
from grpclib.encoding.base import CodecBase
from grpclib.events import SendRequest, listen

from taskd.grpc import NAMESPACE_HEADER
from taskd.grpc.codecs import Messages
from taskd.grpc.connection import Protocol

__all__ = ["Channel"]


_MOST_SECONDS: Final = 99_999_999.0
"""A timeout has eight digits (gRPC over HTTP2, "Requests"); grpclib writes more. Go refuses it."""


class Channel(grpclib.client.Channel):
    """grpclib's, to the socket at `path`; use it in ``async with``.

    Calls are made in `namespace`, if one is given.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        namespace: str = "",
        codec: CodecBase | None = None,
        check: Callable[[socket.socket], None] | None = None,
    ) -> None:
        """`check` looks at each connection that is made, and raises OSError for a bad one."""
        super().__init__(path=str(path), codec=codec or Messages())
        self._check = check
        if namespace:

            async def in_namespace(event: SendRequest) -> None:
                event.metadata[NAMESPACE_HEADER] = namespace

            listen(self, SendRequest, in_namespace)

    def request(self, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        """grpclib's; no `timeout` is too long."""
        if timeout is not None:
            timeout = min(timeout, _MOST_SECONDS)
        return super().request(*arguments, timeout=timeout, **options)

    def _protocol_factory(self) -> Protocol:
        return Protocol(grpclib.client.Handler(), self._config, self._h2_config)

    async def _create_connection(self) -> grpclib.protocol.H2Protocol:
        transport, protocol = await self._loop.create_unix_connection(
            self._protocol_factory, self._path
        )
        if self._check is not None:
            try:
                self._check(transport.get_extra_info("socket"))
            except BaseException:
                transport.abort()
                raise
        return protocol

    async def connect(self) -> None:
        """Connect, unless it is connected. Raises OSError."""
        await self.__connect__()

    async def wait_lost(self) -> None:
        """Return when there is no connection."""
        if self._protocol is not None:
            await cast(Protocol, self._protocol).lost.wait()

    async def __aenter__(self) -> Self:
        return self
