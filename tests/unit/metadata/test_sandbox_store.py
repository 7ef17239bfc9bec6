"""What the parity scenarios cannot show of the store."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from taskd.errors import DataLoss, NotFound
from taskd.metadata import Database, NamespaceStore, Sandbox, SandboxStore
from taskd.metadata.database import _MIGRATIONS
from taskd.types import TypedValue

SANDBOX = Sandbox(
    "s",
    "io.containerd.runc.v2",
    TypedValue("options", b"\x00o"),
    TypedValue("spec", b"\xffs"),
    {"a": "1"},
    extensions={"e": TypedValue("x", b"\x00"), "f": TypedValue("")},
    sandboxer="shim",
)


@pytest.fixture
def sandboxes(database: Database) -> SandboxStore:
    return SandboxStore(database)


async def test_a_record_is_whole_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with Database(path) as database:
        created = await SandboxStore(database).create("ns", SANDBOX)
    assert created.created_at == created.updated_at > 0
    at = created.created_at
    assert created == replace(SANDBOX, created_at=at, updated_at=at)
    with Database(path) as database:
        assert SandboxStore(database).get("ns", "s") == created


async def test_update_leaves_the_time_of_creation(sandboxes: SandboxStore) -> None:
    created = await sandboxes.create("ns", SANDBOX)
    updated = await sandboxes.update("ns", replace(SANDBOX, labels={"b": "2"}), ["labels"])
    assert updated.created_at == created.created_at < updated.updated_at
    assert sandboxes.get("ns", "s") == updated


async def test_a_namespace_may_be_deleted_with_its_sandboxes(
    sandboxes: SandboxStore, namespaces: NamespaceStore
) -> None:
    await sandboxes.create("ns", SANDBOX)
    await sandboxes.create("other", SANDBOX)
    await namespaces.delete("ns")
    with pytest.raises(NotFound, match="^no sandbox buckets: not found$"):
        sandboxes.get("ns", "s")
    assert sandboxes.get("other", "s").id == "s"


async def test_a_database_from_before_there_were_sandboxes(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path)
    connection.executescript(f"{_MIGRATIONS[0]}; {_MIGRATIONS[1]}; PRAGMA user_version = 2")
    connection.execute("INSERT INTO namespaces (name) VALUES ('old')")
    connection.commit()
    connection.close()
    with Database(path) as database:
        sandboxes = SandboxStore(database)
        with pytest.raises(NotFound, match="^no sandbox buckets: not found$"):
            sandboxes.get("old", "s")
        await sandboxes.create("old", SANDBOX)
        assert [each.name for each in NamespaceStore(database).list()] == ["old"]


@pytest.mark.parametrize("column", ["labels", "extensions"])
async def test_a_damaged_record(database: Database, sandboxes: SandboxStore, column: str) -> None:
    await sandboxes.create("ns", SANDBOX)
    await database.write(
        lambda connection: connection.execute(f"UPDATE sandboxes SET {column} = '[1]'")
    )
    with pytest.raises(DataLoss, match=f"database is damaged: {column}"):
        sandboxes.get("ns", "s")
