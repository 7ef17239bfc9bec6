from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd.content import ContentStore
from taskd.gc.collector import Collector
from taskd.metadata import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "metadata.db") as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "content"


@pytest.fixture
def store(database: Database, root: Path) -> ContentStore:
    return ContentStore(database, root)


@pytest.fixture
def collector(database: Database, store: ContentStore) -> Collector:
    return Collector(database, store)
