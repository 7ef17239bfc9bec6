"""A process that holds containers for a daemon, which has been killed and does not come back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from shim_puppet import Shim

from taskd import ttrpc
from taskd.shim import serving

SECONDS = 60.0


async def test_it_ends_when_nothing_lives_in_it(
    shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_ALONE_SECONDS", 0.06)
    address = tmp_path / "alone"
    async with ttrpc.Server(shim.service.services()) as server:
        await server.start(address)
        daemon = await ttrpc.Client.connect(f"unix://{address}", timeout=SECONDS)
        ending = asyncio.create_task(serving._end_alone(server, shim.service.tenants))
        async with aclosing(daemon):
            await asyncio.sleep(0.3)
            assert not ending.done()
            await shim.call("Create")
        await asyncio.sleep(0.3)
        assert not ending.done()
        await shim.call("Delete")
        async with asyncio.timeout(SECONDS):
            await ending
            await shim.service.tenants.stopped.wait()
