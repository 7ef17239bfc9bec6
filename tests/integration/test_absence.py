"""A client whose daemon does not come back."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from harness.daemons import Taskd

from taskd.client import connect
from taskd.errors import Unavailable


async def test_a_call_is_repeated_for_so_long_and_no_longer(tmp_path: Path, namespace: str) -> None:
    with Taskd(tmp_path / "d") as daemon:
        # Longer than what tells a call that was under way from one that did not get to the daemon.
        async with connect(daemon.address, namespace, patience=1.5) as client:
            assert await client.list() == []
            daemon.kill()
            with anyio.fail_after(60), pytest.raises(Unavailable, match="no daemon at"):
                await client.list()
