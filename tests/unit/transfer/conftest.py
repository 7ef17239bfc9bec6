from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.transfers import Parts

from taskd.events import Bus, Journal
from taskd.metadata import Database


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    with (
        Database(tmp_path / "metadata.db") as database,
        Journal(tmp_path / "events.db") as journal,
    ):
        yield Parts(tmp_path, database, Bus(journal))
