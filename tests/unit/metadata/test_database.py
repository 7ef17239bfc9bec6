from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from taskd.errors import DataLoss, FailedPrecondition, NotFound, Unknown
from taskd.metadata import Container, ContainerStore, Database, NamespaceStore
from taskd.types import TypedValue

SPEC = TypedValue("spec", b"{}")


def fill(connection: sqlite3.Connection, name: str = "a") -> None:
    connection.execute("INSERT INTO namespaces (name) VALUES (?)", (name,))


async def test_what_was_written_is_there_after_a_crash(tmp_path: Path) -> None:
    """The files as they are on disk, without those that a closed database would have."""
    with Database(tmp_path / "metadata.db") as database:
        container = Container("c", runtime_name="r", spec=SPEC)
        created = await ContainerStore(database).create("ns", container)
        after = tmp_path / "after"
        after.mkdir()
        for file in tmp_path.glob("metadata.db*"):
            shutil.copy(file, after)
    with Database(after / "metadata.db") as database:
        assert ContainerStore(database).get("ns", "c") == created


async def test_every_commit_reaches_the_disk(database: Database) -> None:
    def settings(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    full = 2
    assert await database.write(settings) == ["wal", full, 1]


async def test_a_failed_write_changes_nothing(database: Database) -> None:
    def work(connection: sqlite3.Connection) -> None:
        fill(connection)
        raise NotFound("it")

    with pytest.raises(NotFound):
        await database.write(work)
    assert database.read("SELECT * FROM namespaces") == []
    await database.write(fill)
    assert len(database.read("SELECT * FROM namespaces")) == 1


async def test_an_error_of_sqlite_names_the_file(database: Database) -> None:
    with pytest.raises(Unknown, match=str(database.path)):
        await database.write(lambda connection: connection.execute("SELECT nonsense"))
    with pytest.raises(Unknown, match=str(database.path)):
        database.read("SELECT nonsense")


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(FailedPrecondition):
        database.read("INSERT INTO namespaces (name) VALUES ('a')")


async def test_a_writer_does_not_hold_up_the_event_loop(database: Database) -> None:
    release = threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        fill(connection)
        assert release.wait(10)

    writing = asyncio.create_task(database.write(work))
    await asyncio.sleep(0.05)
    assert database.read("SELECT * FROM namespaces") == []
    release.set()
    await writing
    assert len(database.read("SELECT * FROM namespaces")) == 1


async def test_a_cancelled_write_completes_and_keeps_the_next_one_out(database: Database) -> None:
    started, release = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        fill(connection)
        started.set()
        assert release.wait(10)

    writing = asyncio.create_task(database.write(work))
    while not started.is_set():
        await asyncio.sleep(0.01)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    following = asyncio.create_task(database.write(lambda connection: fill(connection, "b")))
    await asyncio.sleep(0.05)
    assert not following.done()
    release.set()
    await following
    assert database.read("SELECT name FROM namespaces ORDER BY name") == [("a",), ("b",)]


async def test_reopens(tmp_path: Path) -> None:
    for number in range(3):
        with Database(tmp_path / "metadata.db") as database:
            store = NamespaceStore(database)
            assert len(store.list()) == number
            await store.create(f"n{number}", {})


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(content)
    with pytest.raises(DataLoss, match=str(path)):
        Database(path)


async def test_damage_within_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with Database(path) as database:
        store = ContainerStore(database)
        for number in range(50):
            spec = TypedValue("spec", b"x" * 3000)
            await store.create("ns", Container(f"c{number}", runtime_name="r", spec=spec))
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xa5" * 32768
    path.write_bytes(content)
    with pytest.raises(DataLoss, match=str(path)):
        Database(path)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def as_it_is(path: Path, to: Path) -> Path:
    """A copy of the files of an open database."""
    to.mkdir()
    for file in path.parent.glob("metadata.db*"):
        shutil.copy(file, to)
    return to / path.name


async def test_damage_to_the_log_is_not_kept_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit, anywhere: all records are there, or the log of the daemon says it."""
    path = tmp_path / "metadata.db"
    with Database(path) as database:
        store = ContainerStore(database)
        for number in range(20):
            await store.create("ns", Container(f"c{number:02}", runtime_name="r", spec=SPEC))
        copy = as_it_is(path, tmp_path / "copy")
    content, pages = log_of(copy).read_bytes(), copy.read_bytes()
    # Many of the log's header and of the last page's, and some of all others.
    last = len(content) - 4096 - 24
    bits = [*range(0, 256, 7), *range(last * 8, last * 8 + 192, 5)]
    bits += range(0, len(content) * 8, 40_009)
    lost = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        log_of(copy).write_bytes(damaged)
        copy.write_bytes(pages)
        copy.with_name("metadata.db-shm").unlink(missing_ok=True)
        caplog.clear()
        try:
            with Database(copy) as database:
                there = len(await ContainerStore(database).list("ns"))
        except (DataLoss, FailedPrecondition):
            continue
        if there < 20:
            lost += 1
            assert re.search("its log .*damaged|undone a commit", caplog.text), bit
    assert lost > len(bits) // 2
    log_of(copy).write_bytes(content)
    copy.write_bytes(pages)
    caplog.clear()
    with Database(copy) as database:
        assert len(await ContainerStore(database).list("ns")) == 20
    assert not caplog.text


async def test_the_log_stays_small_and_is_empty_when_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.metadata.database.IDLE_SECONDS", 0.1)
    path = tmp_path / "metadata.db"
    with Database(path) as database:
        async with anyio.create_task_group() as group:
            group.start_soon(database.keep_small)

            def many(connection: sqlite3.Connection) -> None:
                connection.execute("DELETE FROM namespaces")
                for number in range(50):
                    connection.execute(
                        "INSERT INTO namespaces (name, labels) VALUES (?, ?)",
                        (f"n{number}", "x" * 3000),
                    )

            most = 0
            for _ in range(60):
                await database.write(many)
                most = max(most, log_of(path).stat().st_size)
            assert most < 8 * 2**20
            with anyio.fail_after(10):
                while log_of(path).stat().st_size:
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        assert len(database.read("SELECT * FROM namespaces")) == 50


async def test_no_read_waits_for_a_lock(tmp_path: Path) -> None:
    """It would hold up the whole event loop."""
    path = tmp_path / "metadata.db"
    with Database(path) as database:
        assert database._reader.execute("PRAGMA busy_timeout").fetchall() == [(0,)]
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(database.write(fill))
            await asyncio.sleep(0.1)
            assert database.read("SELECT * FROM namespaces") == []
            other.execute("ROLLBACK")
            await writing
        assert len(database.read("SELECT * FROM namespaces")) == 1


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    with pytest.raises(FailedPrecondition, match=f"{path} has schema version 1000"):
        Database(path)


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "metadata.db"
    with pytest.raises(FailedPrecondition, match=str(path)):
        Database(path)


@pytest.mark.parametrize("statement", ["SELECT * FROM namespaces", "BEGIN EXCLUSIVE"])
async def test_other_processes_do_not_get_hold_of_it(tmp_path: Path, statement: str) -> None:
    """Nobody can hold up the daemon with a lock, nor with one on the log's index."""
    path = tmp_path / "it's a % #1 ?.db"
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute(sys.argv[2])"

    def other() -> str:
        command = [sys.executable, "-c", program, str(path), statement]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with Database(path) as database:
        await NamespaceStore(database).create("a", {})
        assert "database is locked" in other()
        assert {each.name for each in tmp_path.iterdir()} == {path.name, f"{path.name}-wal"}
        await NamespaceStore(database).create("b", {})
    assert not other()


@pytest.mark.parametrize("byte", [0xEC, 0xFF, 0x80])
def test_a_damaged_schema_that_is_no_text(tmp_path: Path, byte: int) -> None:
    """SQLite quotes it in its error, which sqlite3 then cannot decode."""
    file = tmp_path / "metadata.db"
    with Database(file):
        pass
    whole = file.read_bytes()
    damaged = whole.replace(b"CREATE TABLE namespaces", b"CREATE %cABLE namespaces" % byte)
    assert damaged != whole
    file.write_bytes(damaged)
    with pytest.raises(DataLoss, match=f"database {file} is damaged: its schema$"):
        Database(file)


@pytest.mark.parametrize("stored", ["", "{", "[]", "3", '{"a" "b"}', '{"a": 1}', '{"a": null}'])
@pytest.mark.parametrize("column", ["labels", "extensions"])
async def test_a_record_that_is_damaged(database: Database, column: str, stored: str) -> None:
    store = ContainerStore(database)
    await store.create("ns", Container("c", runtime_name="r", spec=SPEC))
    await database.write(
        lambda connection: connection.execute(f"UPDATE containers SET {column} = ?", (stored,))
    )
    with pytest.raises(DataLoss, match=f"^the metadata database is damaged: {column} "):
        await store.list("ns")
    with pytest.raises(DataLoss):
        store.get("ns", "c")
