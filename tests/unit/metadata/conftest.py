from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd.metadata import ContainerStore, Database, LeaseStore, NamespaceStore


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "metadata.db") as opened:
        yield opened


@pytest.fixture
def containers(database: Database) -> ContainerStore:
    return ContainerStore(database)


@pytest.fixture
def namespaces(database: Database) -> NamespaceStore:
    return NamespaceStore(database)


@pytest.fixture
def leases(database: Database) -> LeaseStore:
    return LeaseStore(database)
