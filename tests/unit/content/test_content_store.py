from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskd import digests
from taskd.content import ContentStore, Info
from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unknown,
)
from taskd.metadata import Database, LeaseStore, NamespaceStore

HELLO = b"hello, world\n"
DIGEST = digests.of(HELLO)
MISSING = "sha256:" + "2" * 64


async def put(
    store: ContentStore,
    namespace: str,
    content: bytes,
    labels: Mapping[str, str] | None = None,
    lease: str | None = None,
) -> str:
    async with store.writer(namespace, "put", 0, "", lease) as writer:
        await writer.write(content)
        await writer.commit(len(content), digests.of(content), labels or {})
    return digests.of(content)


async def begin(store: ContentStore, namespace: str, ref: str, content: bytes) -> None:
    async with store.writer(namespace, ref, 0, "") as writer:
        await writer.write(content)


async def get(store: ContentStore, namespace: str, digest: str, *place: int) -> bytes:
    return b"".join([piece async for piece in store.read(namespace, digest, *place)])


def blobs(root: Path) -> list[str]:
    return sorted(file.name for file in (root / "blobs" / "sha256").iterdir())


def ingests(root: Path) -> list[Path]:
    return list((root / "ingest").iterdir())


async def test_write_and_read(store: ContentStore, root: Path) -> None:
    before = time.time_ns()
    async with store.writer("ns", "ref", 0, "") as writer:
        assert (writer.digest, writer.status.offset) == (digests.of(b""), 0)
        await writer.write(HELLO[:5])
        await writer.write(HELLO[5:])
        assert (writer.digest, writer.status.offset) == (DIGEST, len(HELLO))
        assert before <= writer.status.started_at <= writer.status.updated_at <= time.time_ns()
        await writer.commit(0, "", {"a": "1", "b": ""})
    info = store.info("ns", DIGEST)
    assert before <= info.created_at <= time.time_ns()
    at = info.created_at
    assert info == Info(DIGEST, len(HELLO), {"a": "1"}, at, at)
    assert await get(store, "ns", DIGEST) == HELLO
    file = root / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (HELLO, 0o400)
    assert ingests(root) == []
    with pytest.raises(NotFound, match=r"^reference ref: not found$"):
        await store.status("ns", "ref")


async def test_pieces(store: ContentStore) -> None:
    content = bytes(3 * (1 << 20) + 7)
    digest = await put(store, "ns", content)
    assert [len(piece) async for piece in store.read("ns", digest)] == [*[1 << 20] * 3, 7]
    assert [len(piece) async for piece in store.read("ns", digest, 1 << 20, 2 << 20)] == [
        1 << 20,
        1 << 20,
    ]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((5,), HELLO[5:]),
        ((0, 5), HELLO[:5]),
        ((3, 4), HELLO[3:7]),
        ((3, 100), HELLO[3:]),
        ((-1, -1), HELLO),
        ((13,), b""),
        ((2**63 - 2**10, 2**62), None),
        ((14,), None),
    ],
)
async def test_places(store: ContentStore, place: tuple[int, ...], expected: bytes | None) -> None:
    await put(store, "ns", HELLO)
    if expected is None:
        with pytest.raises(OutOfRange, match=r"^read past object length 13 bytes$"):
            await get(store, "ns", DIGEST, *place)
    else:
        assert await get(store, "ns", DIGEST, *place) == expected


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_small_part_of_what_the_kernel_may_have_forgotten(
    store: ContentStore, root: Path, forgotten: bool
) -> None:
    content = bytes(range(256)) * (1 << 12)
    digest = await put(store, "ns", content)
    if forgotten:
        with (root / "blobs" / "sha256" / digest.removeprefix("sha256:")).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for place in ((0, 1 << 15), (5, 1 << 15), (len(content) - 3, 1 << 15), (1 << 15, 1 << 17)):
        at, size = place
        assert await get(store, "ns", digest, *place) == content[at : at + size]


async def test_a_file_system_that_cannot_tell_what_it_has_at_hand(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    await put(store, "ns", HELLO)
    monkeypatch.setattr(os, "preadv", refuse)
    assert await get(store, "ns", DIGEST) == HELLO


async def test_a_blob_whose_file_is_lost(store: ContentStore, root: Path) -> None:
    await put(store, "ns", HELLO)
    path = root / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")
    path.unlink()
    text = f"blob {DIGEST} expected at {path}: blob not found: not found"
    with pytest.raises(NotFound) as caught:
        await get(store, "ns", DIGEST)
    assert caught.value.message == text


async def test_a_reader_keeps_what_is_deleted(store: ContentStore) -> None:
    content = bytes(3 << 20)
    digest = await put(store, "ns", content)
    pieces = store.read("ns", digest)
    found = await anext(pieces)
    await store.delete("ns", digest)
    async for piece in pieces:
        found += piece
    assert found == content


async def test_what_is_not_there(store: ContentStore, database: Database) -> None:
    missing = rf"^content digest {MISSING}: not found$"
    with pytest.raises(NotFound, match=missing):
        store.info("ns", MISSING)
    with pytest.raises(NotFound, match=missing):
        await store.update("ns", Info(MISSING))
    with pytest.raises(NotFound, match=missing):
        await store.delete("ns", MISSING)
    with pytest.raises(NotFound, match=missing):
        await get(store, "ns", MISSING)
    assert await store.list("ns") == []
    assert NamespaceStore(database).list() == []


async def test_update(store: ContentStore) -> None:
    await put(store, "ns", HELLO, {"a": "1", "b": "2"})
    before = store.info("ns", DIGEST)
    changed = Info(DIGEST, 99, {"b": "3", "c": "4", "d.e": "5"})
    updated = await store.update("ns", changed, ["labels.b", "labels.d.e", "labels.a"])
    assert updated == store.info("ns", DIGEST)
    assert updated.labels == {"b": "3", "d.e": "5"}
    assert (updated.size, updated.created_at) == (len(HELLO), before.created_at)
    assert updated.updated_at > before.updated_at
    assert (await store.update("ns", changed)).labels == changed.labels
    with pytest.raises(InvalidArgument, match=rf'^cannot update "size" .* "{DIGEST}": invalid arg'):
        await store.update("ns", Info(DIGEST), ["labels", "size"])
    with pytest.raises(InvalidArgument, match=r"^info\.Labels: label key and value greater"):
        await store.update("ns", Info(DIGEST, labels={"x": "y" * 4096}))
    with pytest.raises(Unknown, match=rf"^writing labels for info {DIGEST}: failed to set label"):
        await store.update("ns", Info(DIGEST, labels={"": "y"}))
    assert store.info("ns", DIGEST).labels == changed.labels


async def test_list(store: ContentStore) -> None:
    found = sorted(
        [await put(store, "ns", b"%d" % number, {"n": str(number)}) for number in range(150)]
    )
    assert [each.digest for each in await store.list("ns")] == found
    one = await store.list("ns", [f"digest=={digests.of(b'7')}", "labels.n==8"])
    assert {each.labels["n"] for each in one} == {"7", "8"}
    assert await store.list("ns", ["size==1"]) == []
    assert await store.list("other") == []
    with pytest.raises(InvalidArgument):
        await store.list("ns", ["digest=="])


async def test_a_commit_is_verified(store: ContentStore, root: Path) -> None:
    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(HELLO)
        with pytest.raises(FailedPrecondition, match=r'^"ref" failed size validation: 13 != 14'):
            await writer.commit(14, "", {})
        with pytest.raises(
            FailedPrecondition, match=rf"^unexpected commit digest {DIGEST}, expected {MISSING}: "
        ):
            await writer.commit(13, MISSING, {})
        with pytest.raises(InvalidArgument, match=r"^info\.Labels: "):
            await writer.commit(13, DIGEST, {"x": "y" * 4096})
    assert blobs(root) == []
    assert await store.list("ns") == []
    async with store.writer("ns", "ref", 0, "") as writer:
        assert (writer.digest, writer.status.offset) == (DIGEST, len(HELLO))
        await writer.commit(13, DIGEST, {})
    assert store.info("ns", DIGEST).size == 13


async def test_an_interrupted_write_is_resumed_after_a_restart(
    store: ContentStore, database: Database, root: Path
) -> None:
    async with store.writer("ns", "ref", 13, "") as writer:
        await writer.write(HELLO[:5])
        # The daemon dies here: nothing is closed.
        again = ContentStore(database, root)
        await again.sweep()
        status = await again.status("ns", "ref")
        assert (status.ref, status.offset, status.total) == ("ref", 5, 13)
        assert status.started_at == writer.status.started_at
        assert await again.list("ns") == []
        async with again.writer("ns", "ref", 13, DIGEST) as resumed:
            assert (resumed.digest, resumed.status.offset) == (digests.of(HELLO[:5]), 5)
            await resumed.write(HELLO[5:])
            await resumed.commit(13, DIGEST, {})
    assert await get(again, "ns", DIGEST) == HELLO
    assert ingests(root) == []


async def test_what_cannot_be_resumed_begins_anew(store: ContentStore, root: Path) -> None:
    async with store.writer("ns", "ref", 9, "") as writer:
        await writer.write(HELLO)
    async with store.writer("ns", "ref", 5, "") as writer:
        assert (writer.status.offset, writer.status.total) == (0, 5)
        await writer.write(b"short")
    for damage in ("startedat", "ref"):
        [folder] = ingests(root)
        (folder / damage).write_text("nonsense")
        async with store.writer("ns", "ref", 0, "") as writer:
            assert (writer.digest, writer.status.offset) == (digests.of(b""), 0)
            await writer.write(HELLO)
    async with store.writer("ns", "ref", 0, "") as writer:
        assert (writer.digest, writer.status.offset) == (DIGEST, 13)


async def test_truncate(store: ContentStore) -> None:
    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(b"something longer than that")
        await writer.truncate()
        assert (writer.digest, writer.status.offset) == (digests.of(b""), 0)
        await writer.write(HELLO)
        await writer.commit(13, DIGEST, {})
    assert await get(store, "ns", DIGEST) == HELLO


async def test_refs_are_only_names(store: ContentStore, root: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    refs = ["../../up", "/etc/x", ".", "a" * 5000, "\0", "ns/1/ref", 'q"']
    for ref in refs:
        await begin(store, "ns", ref, HELLO)
    await begin(store, "other", refs[0], b"of another namespace")
    assert all(folder.parent == root / "ingest" for folder in ingests(root))
    assert len(ingests(root)) == len(refs) + 1
    assert sorted(tmp_path.iterdir()) == before
    assert [each.ref for each in await store.statuses("ns")] == sorted(refs)
    assert (await store.status("ns", refs[0])).offset == len(HELLO)
    for ref in refs:
        await store.abort("ns", ref)
    assert len(ingests(root)) == 1
    with pytest.raises(InvalidArgument, match=r"^ref must not be empty: invalid argument$"):
        await begin(store, "ns", "", HELLO)


@pytest.mark.parametrize("expected", ["../../x", "sha256:../../x", "sha512:" + "1" * 128])
async def test_what_is_expected_may_be_anything(store: ContentStore, expected: str) -> None:
    async with store.writer("ns", "ref", 0, expected) as writer:
        await writer.write(HELLO)
        with pytest.raises(FailedPrecondition, match="^unexpected commit digest"):
            await writer.commit(0, expected, {})


async def test_statuses(store: ContentStore) -> None:
    for ref in ("a", "b"):
        await begin(store, "ns", ref, HELLO)
    assert [each.ref for each in await store.statuses("ns", ["ref==b"])] == ["b"]
    assert await store.statuses("ns", ["offset"]) == []
    assert await store.statuses("other") == []
    with pytest.raises(InvalidArgument):
        await store.statuses("ns", ["ref=="])


async def test_a_blob_is_stored_once(store: ContentStore, root: Path) -> None:
    for namespace in ("one", "two"):
        await put(store, namespace, HELLO)
        with pytest.raises(AlreadyExists, match=rf"^content {DIGEST}: already exists$"):
            await put(store, namespace, HELLO)
    assert len(blobs(root)) == 1
    assert ingests(root) == []
    await store.update("one", Info(DIGEST, labels={"a": "1"}))
    assert store.info("two", DIGEST).labels == {}
    await store.delete("one", DIGEST)
    with pytest.raises(NotFound):
        store.info("one", DIGEST)
    assert await get(store, "two", DIGEST) == HELLO
    await store.delete("two", DIGEST)
    assert blobs(root) == []


async def test_two_writers_of_the_same(store: ContentStore, root: Path) -> None:
    async def write(ref: str) -> bool:
        async with store.writer("ns", ref, 0, "") as writer:
            await writer.write(HELLO)
            try:
                await writer.commit(13, DIGEST, {})
            except AlreadyExists:
                return False
            return True

    done = await asyncio.gather(*[write(f"ref{number}") for number in range(20)])
    assert sum(done) == 1
    assert await get(store, "ns", DIGEST) == HELLO
    assert ingests(root) == []


async def test_what_is_expected_and_there_already(store: ContentStore) -> None:
    await put(store, "ns", HELLO)
    with pytest.raises(AlreadyExists, match=rf"^content {DIGEST}: already exists$"):
        async with store.writer("ns", "ref", 0, DIGEST):
            pass
    assert await store.statuses("ns") == []


async def test_sharing(store: ContentStore, root: Path) -> None:
    await put(store, "one", HELLO)
    async with store.writer("two", "ref", 13, DIGEST) as writer:
        assert (writer.digest, writer.status.offset) == (DIGEST, 13)
        # What is expected stays, even if those go who had it.
        await store.delete("one", DIGEST)
        with pytest.raises(NotFound):
            store.info("two", DIGEST)
        with pytest.raises(FailedPrecondition, match=r'^"ref" failed size validation: 13 != 1: '):
            await writer.commit(1, "", {})
        with pytest.raises(FailedPrecondition, match=r'^"ref" unexpected digest: '):
            await writer.commit(0, MISSING, {})
        await writer.commit(13, DIGEST, {"a": "1"})
    assert store.info("two", DIGEST).labels == {"a": "1"}
    assert ingests(root) == []
    await store.delete("two", DIGEST)
    assert blobs(root) == []


async def test_a_share_that_is_given_up(store: ContentStore, root: Path) -> None:
    await put(store, "one", HELLO)
    for ref in ("a", "b"):
        async with store.writer("two", ref, 0, DIGEST):
            pass
    await store.delete("one", DIGEST)
    await store.abort("two", "a")
    assert len(blobs(root)) == 1
    await store.abort("two", "b")
    assert blobs(root) == []


async def test_a_share_of_another_size(store: ContentStore) -> None:
    await put(store, "one", HELLO)
    async with store.writer("two", "ref", 14, DIGEST) as writer:
        assert writer.status.offset == 0


async def test_a_share_that_is_written_to(store: ContentStore, root: Path) -> None:
    await put(store, "one", HELLO)
    async with store.writer("two", "more", 0, DIGEST) as writer:
        await writer.write(b"more")
        assert writer.status.offset == 17
        await writer.commit(17, digests.of(HELLO + b"more"), {})
    async with store.writer("two", "less", 0, DIGEST) as writer:
        await writer.truncate()
        await writer.write(b"less")
        await store.delete("one", DIGEST)
        assert len(blobs(root)) == 2
        await writer.commit(4, "", {})
    assert sorted(blobs(root)) == sorted(
        digests.of(each).removeprefix("sha256:") for each in (HELLO + b"more", b"less")
    )


async def test_a_share_aborted_by_another(store: ContentStore) -> None:
    await put(store, "one", HELLO)
    async with store.writer("two", "ref", 0, DIGEST) as writer:
        await store.delete("one", DIGEST)
        await store.abort("two", "ref")
        with pytest.raises(NotFound, match=rf"^content {DIGEST}: not found$"):
            await writer.commit(0, "", {})
    assert await store.list("two") == []


async def test_abort(store: ContentStore, root: Path) -> None:
    async with store.writer("ns", "ref", 0, "") as writer:
        await writer.write(HELLO)
        await store.abort("ns", "ref")
        assert ingests(root) == []
        await writer.write(b"more")
        with pytest.raises(Unknown, match=r"^rename \S+ \S+: no such file or directory$"):
            await writer.commit(0, "", {})
    assert ingests(root) == []
    assert await store.list("ns") == []
    with pytest.raises(NotFound, match=r"^reference ref: not found$"):
        await store.abort("ns", "ref")
    await begin(store, "ns", "ref", HELLO)
    assert (await store.status("ns", "ref")).offset == 13


async def test_namespaces_are_not_empty(
    store: ContentStore, database: Database, root: Path
) -> None:
    namespaces = NamespaceStore(database)
    await put(store, "ns", HELLO)
    with pytest.raises(FailedPrecondition, match=r"but it still has blobs: "):
        await namespaces.delete("ns")
    await store.delete("ns", DIGEST)
    await begin(store, "ns", "ref", HELLO)
    await namespaces.delete("ns")
    assert await store.statuses("ns") == []
    await store.sweep()
    assert ingests(root) == []


async def test_leases(store: ContentStore, database: Database) -> None:
    leases = LeaseStore(database)
    await leases.create("ns", "l", {})

    async def held() -> list[tuple[str, str]]:
        return [(each.type, each.id) for each in await leases.list_resources("ns", "l")]

    with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
        await put(store, "ns", HELLO, lease="none")
    assert await store.statuses("ns") == []
    async with store.writer("ns", "ref", 0, "", "l") as writer:
        assert await held() == [("ingests", "ref")]
        await writer.commit(0, "", {})
    assert await held() == [("content", digests.of(b""))]
    await put(store, "ns", HELLO)
    with pytest.raises(AlreadyExists):
        async with store.writer("ns", "ref", 0, DIGEST, "l"):
            pass
    assert await held() == [("content", DIGEST), ("content", digests.of(b""))]
    await store.delete("ns", DIGEST, "l")
    assert await held() == [("content", digests.of(b""))]
    async with store.writer("ns", "ref", 0, "", "l"):
        pass
    await store.abort("ns", "ref", "l")
    assert await held() == [("content", digests.of(b""))]


async def test_sweep(store: ContentStore, root: Path) -> None:
    await put(store, "ns", HELLO)
    await put(store, "one", b"shared")
    async with store.writer("two", "shared", 0, digests.of(b"shared")):
        pass
    await store.delete("one", digests.of(b"shared"))
    await begin(store, "ns", "new", b"1")
    stray = root / "blobs" / "sha256" / MISSING.removeprefix("sha256:")
    stray.write_bytes(b"?")
    (root / "blobs" / "sha256" / "foreign").write_bytes(b"?")
    (root / "ingest" / ("0" * 64)).mkdir()
    await store.sweep()
    known = [digest.removeprefix("sha256:") for digest in (DIGEST, digests.of(b"shared"))]
    assert sorted(blobs(root)) == sorted([*known, "foreign"])
    assert [each.ref for each in await store.statuses("ns")] == ["new"]
    assert len(ingests(root)) == 1
    assert await get(store, "ns", DIGEST) == HELLO


async def test_what_comes_while_files_are_swept_stays(
    store: ContentStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = asyncio.Event()
    remove_unused = store._remove_unused

    async def later(digest: str) -> None:
        removing.set()
        async with store.writer("ns", "ref", 0, digest) as writer:
            await writer.commit(0, digest, {})
        await remove_unused(digest)

    stray = root / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")
    stray.write_bytes(HELLO)
    monkeypatch.setattr(store, "_remove_unused", later)
    await store.sweep()
    assert removing.is_set()
    assert await get(store, "ns", DIGEST) == HELLO
