"""A registry that does what a test tells it to, for what a real one cannot be made to do."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from harness.registry import Image

__all__ = ["FakeRegistry", "Request", "serving"]


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    writer: asyncio.StreamWriter

    @property
    def offset(self) -> int:
        """Where the client wants to go on."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0

    async def answer(
        self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str
    ) -> None:
        """`length` is what is said of the body, if that is not to be true."""
        lines = [f"HTTP/1.1 {status} Whatever"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        lines.append(f"Content-Length: {len(body) if length is None else length}")
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        if self.method != "HEAD":
            self.writer.write(body)
        await self.writer.drain()


Handler = Callable[[Request], Awaitable[bool]]
"""Answers a request, or says that it does not."""


@dataclass
class FakeRegistry:
    """Has one image under every tag. `handlers` come first, the first of them first."""

    image: Image
    host: str = ""
    handlers: list[Handler] = field(default_factory=list)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)

    def name(self, image: str = "a/b:t") -> str:
        return f"{self.host}/{image}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().strip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {
                    key.lower(): value.strip()
                    for key, _, value in (line.partition(":") for line in lines)
                }
                if size := int(headers.get("content-length", "0")):
                    await reader.readexactly(size)
                request = Request(method, path, headers, writer)
                self.asked[method, path.rpartition("/")[2]] += 1
                self.requests.append(request)
                for handler in self.handlers:
                    if await handler(request):
                        break
                else:
                    await self.answer(request)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def answer(self, request: Request) -> None:
        """As a registry should."""
        name = request.path.rpartition("/")[2]
        manifest = self.image.manifest
        if "/manifests/" in request.path and name in ("t", manifest.digest):
            await request.answer(
                200,
                manifest.content,
                Content_Type=manifest.media_type,
                Docker_Content_Digest=manifest.digest,
            )
            return
        for blob in self.image.blobs:
            if name == blob.digest:
                content = blob.content[request.offset :]
                whole = f"bytes {request.offset}-{len(blob.content) - 1}/{len(blob.content)}"
                if request.offset:
                    await request.answer(206, content, Content_Range=whole)
                else:
                    await request.answer(200, content)
                return
        errors = [{"code": "NAME_UNKNOWN", "message": "it is not here"}]
        await request.answer(404, json.dumps({"errors": errors}).encode())


@asynccontextmanager
async def serving(image: Image) -> AsyncIterator[FakeRegistry]:
    """A fake registry on a port of loopback."""
    registry = FakeRegistry(image)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(registry.serve(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    registry.host = f"{address}:{port}"
    try:
        yield registry
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
