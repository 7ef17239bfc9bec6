from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.layers import Apply

from taskd.diff import child
from taskd.types import Mount


@pytest.fixture
def apply(tmp_path: Path) -> Apply:
    """Unpacks bytes onto mounts, or else into the folder ``root``, in the process for it."""

    async def apply(
        layer: bytes,
        *mounts: Mount,
        sniff: bool = True,
        ahead: bool = False,
        max_size: int = 1 << 30,
        max_entries: int = 1000,
    ) -> child.Told:
        (tmp_path / "place/left").mkdir(parents=True, exist_ok=True)
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        blob = tmp_path / "blob"
        blob.write_bytes(layer)
        source = os.open(blob, os.O_RDONLY)
        order = {
            "mounts": child.ordered(mounts or [Mount("bind", str(root), options=("rbind", "rw"))]),
            "ahead": ahead,
            "place": str(tmp_path / "place"),
            "sniff": sniff,
            "sync": False,
            "max_size": max_size,
            "max_entries": max_entries,
        }
        try:
            return await child.run("apply", order, stdin=source)
        finally:
            os.close(source)

    return apply
