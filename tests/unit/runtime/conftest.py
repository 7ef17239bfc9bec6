from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.fake_generation import Connection, World

from taskd.errors import Unknown
from taskd.runtime import shims as module
from taskd.runtime.binary import Bootstrap


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    async def connect(bootstrap: Bootstrap, *, timeout: float) -> Connection:
        if not world.reachable:
            raise Unknown("nobody listens")
        return Connection()

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", (0.01, 0.05, 0.2))
    world = World(folder)
    yield world
    for process in world.processes.values():
        process.kill()
        process.wait()
