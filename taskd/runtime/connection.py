"""A connection to a running shim, whichever of the two protocols it speaks."""

from __future__ import annotations

import asyncio
from typing import Protocol

from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, StreamTerminatedError

from taskd import errors, ttrpc
from taskd.grpc.channel import Channel
from taskd.grpc.codecs import Serialised
from taskd.runtime.binary import Bootstrap
from taskd.sockets import refuse_stranger
from taskd.ttrpc.address import dial

__all__ = ["PROTOCOLS", "Connection", "connect"]

PROTOCOLS = ("ttrpc", "grpc")

_RETRY_SECONDS = 0.1


class Connection(Protocol):
    """Calls a shim's services with serialised messages."""

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: ttrpc.Metadata | None = None,
    ) -> bytes:
        """Answer of one call; `timeout` in seconds.

        Raises the error of the shim's status, `DeadlineExceeded`, or `ttrpc.ConnectionClosed`.
        """

    async def wait_closed(self) -> None:
        """Return when the shim has gone, or `aclose` was called."""

    async def aclose(self) -> None:
        """Close; calls in flight fail with `ttrpc.ConnectionClosed`."""


async def connect(bootstrap: Bootstrap, *, timeout: float) -> Connection:
    """Connect to the shim within `timeout` seconds.

    Raises `Unknown` if nobody listens there, or somebody whose shim it cannot be, or for a protocol
    that is neither.
    """
    match bootstrap.protocol.lower():
        case "ttrpc":
            return await _connect_ttrpc(bootstrap.address, timeout)
        case "grpc":
            return await GrpcConnection.connect(bootstrap.address, timeout=timeout)
        case other:
            raise errors.Unknown(f'unexpected protocol: "{other}"')


async def _connect_ttrpc(address: str, timeout: float) -> ttrpc.Client:
    try:
        connected = await dial(address, timeout=timeout)
    except errors.Unavailable as exc:
        raise errors.Unknown(str(exc).removesuffix(": unavailable")) from None
    try:
        refuse_stranger(connected)
        return await ttrpc.Client.from_socket(connected)
    except OSError as exc:
        connected.close()
        raise errors.Unknown(f"connecting to {address}: {errors.words(exc)}") from exc


class GrpcConnection:
    """A shim that speaks gRPC (containerd: ``grpcDialContext``)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, address: str, *, timeout: float) -> GrpcConnection:
        path = address.removeprefix("unix://")
        connection = cls(Channel(path, codec=Serialised(), check=refuse_stranger))
        try:
            async with asyncio.timeout(timeout):
                await connection._channel.connect()
        except (OSError, TimeoutError) as exc:
            connection._channel.close()
            raise errors.Unknown(f"connecting to shim at {address}: {errors.words(exc)}") from exc
        return connection

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: ttrpc.Metadata | None = None,
    ) -> bytes:
        if self._closed.is_set():
            raise ttrpc.ConnectionClosed
        sent = (metadata or {}).items()
        try:
            async with self._channel.request(
                f"/{service}/{method}",
                Cardinality.UNARY_UNARY,
                bytes,
                bytes,
                timeout=timeout,
                metadata=[(name, each) for name, values in sent for each in values],
            ) as stream:
                await stream.send_message(payload, end=True)
                answer: bytes | None = await stream.recv_message()
                return answer or b""
        except GRPCError as exc:
            raise errors.from_status(exc.status.value, exc.message or "") from exc
        except TimeoutError as exc:
            raise errors.DeadlineExceeded from exc
        except (OSError, StreamTerminatedError) as exc:
            raise ttrpc.ConnectionClosed from exc

    async def wait_closed(self) -> None:
        while not self._closed.is_set():
            await self._channel.wait_lost()
            if self._closed.is_set():
                return
            # A shim that has closed a connection may take another one.
            try:
                await self._channel.connect()
            except OSError:
                self._closed.set()
            else:
                await asyncio.sleep(_RETRY_SECONDS)

    async def aclose(self) -> None:
        self._closed.set()
        self._channel.close()
