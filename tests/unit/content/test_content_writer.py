"""What goes wrong while a blob is written."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from taskd import digests
from taskd.content import ContentStore, files
from taskd.errors import Unavailable, Unknown
from taskd.metadata import Database

HELLO = b"hello, world\n"
DIGEST = digests.of(HELLO)


async def test_one_writer_at_a_time(store: ContentStore) -> None:
    async with store.writer("ns", "ref", 0, "") as writer:
        text = r"^ref ns/1/ref locked for [\d.e-]+s \(since \d{4}-.* UTC\): unavailable$"
        with pytest.raises(Unavailable, match=text):
            async with store.writer("ns", "ref", 0, ""):
                pass
        async with store.writer("other", "ref", 0, ""), store.writer("ns", "other", 0, ""):
            pass
        await writer.write(HELLO)
    async with store.writer("ns", "ref", 0, "") as writer:
        assert writer.status.offset == 13


async def test_a_locked_write_is_refused_at_once(store: ContentStore) -> None:
    async def write() -> bool:
        try:
            async with store.writer("ns", "ref", 0, ""):
                await asyncio.sleep(0.1)
        except Unavailable:
            return False
        return True

    assert sorted(await asyncio.gather(*[write() for _ in range(5)])) == [False] * 4 + [True]
    assert await write()


@pytest.mark.parametrize("ref", ["a\rb", "a\r\nb", "\n", "a\x85b\u2028c", " ", "é\0"])
async def test_a_write_is_resumed_whatever_its_name(store: ContentStore, ref: str) -> None:
    async with store.writer("ns", ref, 0, "") as writer:
        await writer.write(HELLO)
    async with store.writer("ns", ref, 0, "") as writer:
        assert writer.status.offset == len(HELLO)
    assert [status.ref for status in await store.statuses("ns")] == [ref]


async def test_a_full_disk(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, 5

    def full(descriptor: int, content: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, content[:room])
        room -= count
        return count

    async with store.writer("ns", "ref", 0, "") as writer:
        with monkeypatch.context() as patched:
            patched.setattr("taskd.content.ingest.os.write", full)
            with pytest.raises(Unknown, match=r"^write \S+/data: no space left on device$"):
                await writer.write(HELLO)
        assert (writer.status.offset, writer.digest) == (5, digests.of(HELLO[:5]))
    async with store.writer("ns", "ref", 0, "") as writer:
        assert writer.status.offset == 5
        await writer.write(HELLO[5:])
        await writer.commit(13, DIGEST, {})


async def test_everything_is_on_disk_before_it_is_seen(
    store: ContentStore, root: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, rename, transact = os.fsync, Path.rename, database._transact

    def record_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        steps.append(f"fsync {name}")
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        if path.name == "data":
            steps.append("rename")
        return rename(path, target)

    def record_transact(work: Any) -> Any:
        result = transact(work)
        steps.append("committed")
        return result

    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(HELLO)
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(Path, "rename", record_rename)
        monkeypatch.setattr(database, "_transact", record_transact)
        await writer.commit(13, DIGEST, {})
    assert steps == ["fsync data", "rename", "fsync sha256", "committed"]


async def test_a_commit_that_the_database_refuses(
    store: ContentStore, root: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there then, but nobody sees it; writing it again needs no more than that."""

    async def refuse(work: Any) -> None:
        def fail(connection: sqlite3.Connection) -> None:
            work(connection)
            raise Unknown("disk full")

        await Database.write(database, fail)

    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(HELLO)
        with monkeypatch.context() as patched:
            patched.setattr(database, "write", refuse)
            with pytest.raises(Unknown, match="disk full"):
                await writer.commit(13, DIGEST, {})
    assert await store.list("ns") == []
    async with store.writer("ns", "ref", 0, "") as writer:
        assert writer.status.offset == 0
        await writer.write(HELLO)
        await writer.commit(13, DIGEST, {})
    assert store.info("ns", DIGEST).size == 13
    assert list((root / "ingest").iterdir()) == []


async def test_a_cancelled_commit_comes_to_its_end(
    store: ContentStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, release = threading.Event(), threading.Event()
    place = files.Files.place

    def slow(self: files.Files, data: Path, digest: str) -> None:
        reached.set()
        assert release.wait(10)
        place(self, data, digest)

    monkeypatch.setattr(files.Files, "place", slow)
    with anyio.CancelScope() as scope:
        async with store.writer("ns", "ref", 0, "") as writer, anyio.create_task_group() as group:
            await writer.write(HELLO)

            async def cancel() -> None:
                while not reached.is_set():
                    await anyio.sleep(0.01)
                scope.cancel()
                release.set()

            group.start_soon(cancel)
            await writer.commit(13, DIGEST, {})
    assert store.info("ns", DIGEST).size == 13
    assert list((root / "ingest").iterdir()) == []
    async with store.writer("ns", "ref", 0, "") as writer:
        assert writer.status.offset == 0


async def test_opening_can_be_cancelled(store: ContentStore) -> None:
    """Reading again what a write has so far may take long; then its lock is free again."""
    async with store.writer("ns", "ref", 0, "") as writer:
        for _ in range(32):
            await writer.write(bytes(1 << 20))
    with anyio.move_on_after(0.005):
        async with store.writer("ns", "ref", 0, ""):
            pass
    async with store.writer("ns", "ref", 0, "") as writer:
        assert writer.status.offset == 32 << 20


async def test_the_disk_does_not_hold_up_the_event_loop(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr("taskd.content.ingest.os.fsync", lambda _: release.wait(10))
    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(HELLO)
        commit = asyncio.create_task(writer.commit(13, DIGEST, {}))
        await asyncio.sleep(0.05)
        async with store.writer("ns", "other", 0, "") as other:
            await other.write(HELLO)
        assert not commit.done()
        release.set()
        await commit
