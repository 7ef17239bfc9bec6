"""Requests to registries, and what comes back, for whoever looks into what goes wrong.

Source: containerd's ``pkg/httpdbg``, and Go's ``net/http/httputil``, in whose form they are.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import aiohttp
import anyio

__all__ = ["Dump", "Write", "trace"]

_log = logging.getLogger(__name__)

Write = Callable[[bytes], Awaitable[None]]
"""Takes what is to be seen, in pieces that belong together."""

_LARGEST = 64 << 10
"""Bytes of a body that is shown: layers are not."""


class Dump:
    """A middleware that shows each request, and each answer; also what is secret in them."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = anyio.Lock()

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        first = f"{request.method} {request.url.raw_path_qs} HTTP/1.1"
        await self._show(first, request.headers.items())
        response = await handler(request)
        body, size = b"", response.content_length
        if size is not None and size <= _LARGEST:
            body = await response.read()  # those who want it later get the same
        elif request.method != "HEAD":
            body = f"[{'?' if size is None else size} bytes]".encode()
        first = f"HTTP/1.1 {response.status} {response.reason}"
        await self._show(first, response.headers.items(), body)
        return response

    async def _show(
        self, first: str, headers: Iterable[tuple[str, str]], body: bytes = b""
    ) -> None:
        lines = [first, *(f"{key}: {value}" for key, value in sorted(headers)), "", ""]
        async with self._lock:
            await self._write("\r\n".join(lines).encode(errors="surrogateescape") + body)


def trace() -> aiohttp.TraceConfig:
    """Has the log say how hosts are found, and which connections are used."""

    async def looking(_: object, __: object, about: aiohttp.TraceDnsResolveHostStartParams) -> None:
        _log.debug("DNS lookup of %s", about.host)

    async def found(_: object, __: object, about: aiohttp.TraceDnsResolveHostEndParams) -> None:
        _log.debug("DNS lookup of %s complete", about.host)

    async def made(_: object, __: object, about: object) -> None:
        _log.debug("connection successful")

    async def reused(_: object, __: object, about: object) -> None:
        _log.debug("connection successful: one that there was")

    config = aiohttp.TraceConfig()
    config.on_dns_resolvehost_start.append(looking)
    config.on_dns_resolvehost_end.append(found)
    config.on_connection_create_end.append(made)
    config.on_connection_reuseconn.append(reused)
    return config
