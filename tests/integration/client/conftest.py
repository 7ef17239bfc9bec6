from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.daemons import Daemon
from harness.leaks import leaving_nothing
from harness.servers import SERVERS, Server

from taskd.client import Client, connect


@pytest.fixture(scope="package", params=SERVERS, ids=str)
def server(request: pytest.FixtureRequest) -> Server:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="package")
def served(server: Server) -> Iterator[Daemon]:
    """A daemon of each kind, one after another, for all the tests of this folder."""
    with server.running() as daemon:
        yield daemon


@pytest.fixture
async def client(served: Daemon, server: Server, namespace: str) -> AsyncIterator[Client]:
    """Nothing of its namespace may be left in the end, nor of its streams."""
    with leaving_nothing(served, namespace):
        async with connect(served.address, namespace) as client:
            yield client
            left = await client.list()
            for container in left:
                await container.leave()
            assert left == []
    assert list(Path("/run").glob(f"taskd-io-*-{namespace}*")) == []
