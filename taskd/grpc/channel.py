"""The clients' side of gRPC: a channel to a unix socket."""

from __future__ import annotations

from pathlib import Path
from typing import Self, cast

import grpclib.client
from grpclib.encoding.base import CodecBase
from grpclib.events import SendRequest, listen

from taskd.grpc import NAMESPACE_HEADER
from taskd.grpc.codecs import Messages
from taskd.grpc.connection import Protocol

__all__ = ["Channel"]


class Channel(grpclib.client.Channel):
    """grpclib's, to the socket at `path`; use it in ``async with``.

    Calls are made in `namespace`, if one is given.
    """

    def __init__(
        self, path: Path | str, *, namespace: str = "", codec: CodecBase | None = None
    ) -> None:
        super().__init__(path=str(path), codec=codec or Messages())
        if namespace:

            async def in_namespace(event: SendRequest) -> None:
                event.metadata[NAMESPACE_HEADER] = namespace

            listen(self, SendRequest, in_namespace)

    def _protocol_factory(self) -> Protocol:
        return Protocol(grpclib.client.Handler(), self._config, self._h2_config)

    async def connect(self) -> None:
        """Connect, unless it is connected. Raises OSError."""
        await self.__connect__()

    async def wait_lost(self) -> None:
        """Return when there is no connection."""
        if self._protocol is not None:
            await cast(Protocol, self._protocol).lost.wait()

    async def __aenter__(self) -> Self:
        return self
