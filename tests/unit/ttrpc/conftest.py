from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from ttrpc_peer import Peer

from taskd.ttrpc import Client, Handler, Server, Service


class Wires:
    """Makes connections, and takes them down when the test is over."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def _serve(self, methods: dict[str, Handler]) -> tuple[Server, socket.socket]:
        server = Server([Service("test", methods)])
        self._stack.push_async_callback(server.aclose)
        ours, theirs = socket.socketpair()
        await server.serve_connection(ours)
        return server, theirs

    async def both(self, **methods: Handler) -> tuple[Client, Server]:
        """A client and a server, of the service ``test``."""
        server, sock = await self._serve(methods)
        client = await Client.from_socket(sock)
        self._stack.push_async_callback(client.aclose)
        return client, server

    async def server(self, **methods: Handler) -> tuple[Peer, Server]:
        """A server, and a client that is spoken by hand."""
        server, sock = await self._serve(methods)
        peer = await Peer.on(sock)
        self._stack.push_async_callback(peer.aclose)
        return peer, server

    async def client(self) -> tuple[Client, Peer]:
        """A client, and a server that is spoken by hand."""
        ours, theirs = socket.socketpair()
        client = await Client.from_socket(ours)
        peer = await Peer.on(theirs)
        self._stack.push_async_callback(client.aclose)
        self._stack.push_async_callback(peer.aclose)
        return client, peer

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def wires() -> AsyncIterator[Wires]:
    """Connections; none of them may leave a task, a descriptor, or an unhandled error behind."""
    unhandled: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    tasks = asyncio.all_tasks()
    made = Wires()
    yield made
    await made.aclose()
    assert asyncio.all_tasks() - {asyncio.current_task()} <= tasks
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert not unhandled


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for a condition that nothing announces."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)

    return wait
