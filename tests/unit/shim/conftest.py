from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from shim_puppet import Puppet, Shim, serving

from taskd.shim.reaper import Reaper


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    Puppet.calls.clear()
    Puppet.fail.clear()
    Puppet.ends.clear()


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    async with serving(Puppet, tmp_path) as running:
        yield running


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    """It reaps all children of the test's process while the test runs."""
    reaper = Reaper()
    reaper.install()
    yield reaper
    reaper.uninstall()
