from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.snapshots import Machine

from taskd.events import Bus, Journal
from taskd.metadata import Database
from taskd.snapshots import Snapshotter


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with (
        Database(tmp_path / "metadata.db") as database,
        Journal(tmp_path / "events.db") as journal,
    ):
        yield Machine(tmp_path, database, Bus(journal))


@pytest.fixture
def overlay(machine: Machine) -> Snapshotter:
    return machine.snapshotter()


@pytest.fixture
def native(machine: Machine) -> Snapshotter:
    return machine.snapshotter("native")
