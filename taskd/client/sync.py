"""`taskd.client` without an event loop: for scripts, and for tests that are plain functions.

    with connect() as client, client.run("alpine", ["echo", "hello"]) as container:
        for line in container.lines():
            print(line)
        assert container.wait().code == 0

All is called as there, without ``await``; ``for`` and ``with`` stand for ``async for`` and ``async
with``. It is done on a thread of its own, so that what containers write is taken meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = ["connect", "portal"]


@contextmanager
def portal() -> Iterator[BlockingPortal]:
    """A loop on a thread of its own."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal("asyncio") as started:
        yield started


@contextmanager
def connect(
    address: Path | str | None = None, namespace: str | None = None, *, patience: float = 10.0
) -> Iterator[Any]:
    """A client as `taskd.client.connect` has it, all of whose methods wait."""
    from taskd.client.client import Client
    from taskd.client.faces import Blocking

    async def make() -> Client:
        return Client(address, namespace, patience=patience)

    with portal() as started:
        client = started.call(make)
        with started.wrap_async_context_manager(client):
            yield Blocking(started, client)
