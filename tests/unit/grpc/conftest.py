from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc_service import Service

from taskd.api.server import ApiServer
from taskd.grpc import engine


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(
    service: Service, folder: Path, on_engine: engine.Engine
) -> AsyncIterator[ApiServer]:
    """Serves `service` on the socket ``s`` in `folder`."""
    api = ApiServer([service])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        await api.start(listener)
        yield api
        async with asyncio.timeout(10):
            await api.drain(0.1)
            await api.close()
    assert not asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture
def path(server: ApiServer, folder: Path) -> Path:
    """The server's socket."""
    return folder / "s"
