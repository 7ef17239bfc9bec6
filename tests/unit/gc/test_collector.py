from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import anyio
import pytest

from taskd import clock, digests
from taskd.content import ContentStore, Info
from taskd.content.store import EXPIRY
from taskd.errors import AlreadyExists
from taskd.gc import collector as module
from taskd.gc.collector import Collector
from taskd.metadata import (
    Container,
    ContainerStore,
    Database,
    Descriptor,
    Image,
    ImageStore,
    LeaseStore,
    Resource,
)
from taskd.types import TypedValue

REF = "containerd.io/gc.ref.content"
ROOT = {"containerd.io/gc.root": "yes"}
PAST = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}
FUTURE = {"containerd.io/gc.expire": "2220-01-01T00:00:00Z"}
FLAT = {"containerd.io/gc.flat": "yes"}


def digest(name: str) -> str:
    return digests.of(name.encode())


class World:
    """Blobs whose bytes are their names."""

    def __init__(self, database: Database, store: ContentStore, collector: Collector) -> None:
        self.database = database
        self.store = store
        self.collector = collector
        self.leases = LeaseStore(database)

    async def blob(
        self,
        name: str,
        *refers: str,
        labels: Mapping[str, str] | None = None,
        namespace: str = "ns",
        lease: str | None = None,
    ) -> None:
        """A blob that refers to those others."""
        labels = dict(labels or {})
        labels |= {f"{REF}.{number}": digest(each) for number, each in enumerate(refers)}
        async with self.store.writer(namespace, name, 0, "", lease) as writer:
            await writer.write(name.encode())
            await writer.commit(0, "", labels)

    async def image(
        self, target: str, labels: Mapping[str, str] | None = None, namespace: str = "ns"
    ) -> None:
        image = Image(target, labels or {}, Descriptor("application/x", digest(target), 1))
        await ImageStore(self.database).create(namespace, image)

    async def lease(self, name: str, *blobs: str, labels: Mapping[str, str] | None = None) -> None:
        await self.leases.create("ns", name, labels or {})
        for each in blobs:
            await self.leases.add_resource("ns", name, Resource(digest(each), "content"))

    async def left(self, namespace: str = "ns") -> str:
        """Collect; returns the names of the blobs that are left, which have one letter."""
        await self.collector.collect()
        infos = await self.store.list(namespace)
        names = {digest(letter): letter for letter in "abcdefghijklmnopqrstuvwxyz"}
        return "".join(sorted(names[info.digest] for info in infos))


@pytest.fixture
def world(database: Database, store: ContentStore, collector: Collector) -> World:
    return World(database, store, collector)


def files(root: Path) -> set[str]:
    return {file.name for file in (root / "blobs" / "sha256").iterdir()}


def hexes(names: str) -> set[str]:
    return {digest(name).removeprefix("sha256:") for name in names}


async def test_nothing(world: World) -> None:
    assert await world.left() == ""


async def test_roots(world: World, root: Path) -> None:
    await world.lease("l", "b")
    await world.image("a")
    await world.blob("a")
    await world.blob("b")
    await world.blob("c", labels=ROOT)
    await world.blob("d", lease="l")
    await world.blob("x")
    assert files(root) == hexes("abcdx")
    assert await world.left() == "abcd"
    assert files(root) == hexes("abcd")
    await world.leases.delete("ns", "l")
    assert await world.left() == "ac"


async def test_references(world: World) -> None:
    """To blobs that are there and that are not, also in circles."""
    await world.image("a")
    await world.blob("a", "b", "c", "z")
    await world.blob("b", "d")
    await world.blob("c")
    await world.blob("d", "a", "d")
    await world.blob("x", "y", "a")
    await world.blob("y", "x")
    assert await world.left() == "abcd"


@pytest.mark.parametrize(
    ("label", "refers"),
    [
        (REF, True),
        (f"{REF}.", True),
        (f"{REF}.config", True),
        (f"{REF}/any/thing", True),
        (f"{REF}.m.1/\N{GREEK SMALL LETTER ALPHA}", True),
        (f"{REF}s", False),
        (f"{REF}-x", False),
        (f"x{REF}", False),
        ("containerd.io/gc.ref.contents", False),
        ("containerd.io/gc.ref.snapshot.overlayfs", False),
        ("containerd.io/gc.ref.", False),
        ("containerd/io/gc.ref.content", False),
        ("CONTAINERD.IO/GC.REF.CONTENT", False),
    ],
)
async def test_labels_that_refer(world: World, label: str, refers: bool) -> None:
    await world.blob("a", labels={**ROOT, label: digest("b"), 'q"\\': digest("x")})
    await world.blob("b")
    assert await world.left() == ("ab" if refers else "a")


async def test_labels_of_images_and_containers(world: World) -> None:
    await world.image("a", {REF: digest("b")})
    container = Container(
        "c", runtime_name="r", spec=TypedValue("", b""), labels={f"{REF}/x": digest("c")}
    )
    await ContainerStore(world.database).create("ns", container)
    await world.blob("b", "d")
    for name in "cdx":
        await world.blob(name)
    assert await world.left() == "bcd"
    await ContainerStore(world.database).delete("ns", "c")
    assert await world.left() == "bd"


async def test_a_flat_lease_holds_only_what_it_names(world: World) -> None:
    await world.lease("flat", "a", "c", labels=FLAT)
    for name, refers in (("a", "b"), ("b", "c"), ("c", "d"), ("d", "c")):
        await world.blob(name, refers)
    assert await world.left() == "ac"
    await world.lease("deep", "c")
    await world.blob("d", "c")
    assert await world.left() == "acd"
    await world.leases.delete("ns", "deep")
    assert await world.left() == "ac"
    await world.leases.delete("ns", "flat")
    assert await world.left() == ""


async def test_namespaces_are_worlds_of_their_own(world: World, root: Path) -> None:
    await world.image("a", namespace="one")
    for namespace in ("one", "two"):
        await world.blob("a", "b", namespace=namespace)
    await world.blob("b", namespace="two")
    assert await world.left("two") == ""
    assert await world.left("one") == "a"
    assert files(root) == hexes("a")


async def test_leases_expire(world: World) -> None:
    await world.lease("past", "a", labels=PAST)
    await world.lease("future", "b", labels=FUTURE)
    await world.lease("wrong", "c", labels={"containerd.io/gc.expire": "tomorrow"})
    for name in "abc":
        await world.blob(name)
    assert world.collector.overdue()
    assert await world.left() == "bc"
    assert [each.id for each in await world.leases.list("ns")] == ["future", "wrong"]
    assert not world.collector.overdue()


async def test_a_step_of_the_clock_expires_no_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.lease("future", "a", labels=FUTURE)
    await world.blob("a")
    expires = datetime.fromisoformat(FUTURE["containerd.io/gc.expire"]).timestamp()
    monkeypatch.setattr(time, "time_ns", lambda: int(expires * 1e9) + EXPIRY)
    assert not world.collector.overdue()
    assert await world.left() == "a"
    assert [each.id for each in await world.leases.list("ns")] == ["future"]


async def test_writes_expire(
    world: World, root: Path, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.leases.create("ns", "l", {})
    for ref, lease in (("leased", "l"), ("new", None)):
        async with store.writer("ns", ref, 0, "", lease) as writer:
            await writer.write(b"half")
    await world.collector.collect()
    assert [each.ref for each in await store.statuses("ns")] == ["leased", "new"]
    assert not world.collector.overdue()
    async with store.writer("ns", "active", 0, "") as writer:
        now, passed = time.time_ns(), 0
        uptime = clock._uptime()
        with monkeypatch.context() as patched:
            patched.setattr(time, "time_ns", lambda: now + 2 * EXPIRY)
            patched.setattr(clock, "_uptime", lambda: uptime + passed)
            # The clock was set; what it says has not passed.
            assert not world.collector.overdue()
            await world.collector.collect()
            assert len(await store.statuses("ns")) == 3
            passed = 2 * EXPIRY
            assert world.collector.overdue()
            await world.collector.collect()
            assert not world.collector.overdue()
        assert [each.ref for each in await store.statuses("ns")] == ["active", "leased"]
        await writer.commit(0, "", ROOT)
    await world.leases.delete("ns", "l")
    assert world.collector.overdue()
    await world.collector.collect()
    assert await store.statuses("ns") == []
    assert list((root / "ingest").iterdir()) == []


async def test_a_write_keeps_what_it_shares(world: World, store: ContentStore, root: Path) -> None:
    """The file, though no namespace has the blob, nor its own if it gets it by other hands."""
    await world.blob("a", namespace="one")
    async with store.writer("two", "ref", 0, digest("a")) as writer:
        assert await world.left("one") == ""
        assert files(root) == hexes("a")
        await world.blob("a", namespace="two")
        assert await world.left("two") == "a"
        await store.delete("two", digest("a"))
        await writer.commit(0, digest("a"), {})
    assert await world.left("two") == ""
    assert files(root) == set()


async def test_an_image_that_comes_while_garbage_is_collected(
    world: World, store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before the mark, and keeps its blob, or after it has gone."""
    marking, go_on = threading.Event(), threading.Event()
    remove = module.remove

    def slow(connection: sqlite3.Connection, *arguments: object) -> object:
        marking.set()
        assert go_on.wait(10)
        return remove(connection, *arguments)  # type: ignore[arg-type]

    await world.blob("a")
    monkeypatch.setattr(module, "remove", slow)
    async with anyio.create_task_group() as group:
        group.start_soon(world.collector.collect)
        await asyncio.to_thread(marking.wait, 10)
        group.start_soon(world.image, "a")
        await anyio.sleep(0.05)
        # Reading goes on.
        assert await ImageStore(world.database).list("ns") == []
        assert store.info("ns", digest("a")).size == 1
        go_on.set()
    assert await store.list("ns") == []
    await world.blob("a")
    assert await world.left() == "a"


async def test_writers_that_do_as_they_should_lose_nothing(
    world: World, store: ContentStore, root: Path
) -> None:
    """Under a lease until labels and an image hold what was written, as containerd's client."""
    working = True

    async def collect() -> None:
        while working:
            await world.collector.collect()

    async def pull(number: int) -> None:
        lease, names = f"l{number}", [f"{number}.{part}" for part in range(4)]
        await world.lease(lease)
        for name in names:
            await world.blob(name, lease=lease)
        # What another image has already is held as well.
        async with store.writer("ns", f"shared{number}", 0, "", lease) as writer:
            await writer.write(b"shared")
            with suppress(AlreadyExists):
                await writer.commit(0, "", {})
        labels = {f"{REF}.{each}": digest(each) for each in [*names[1:], "shared"]}
        await store.update("ns", Info(digest(names[0]), labels=labels), ["labels"])
        await world.image(names[0])
        await world.leases.delete("ns", lease)
        if number % 2:
            await ImageStore(world.database).delete("ns", names[0])

    async with anyio.create_task_group() as group:
        group.start_soon(collect)
        async with anyio.create_task_group() as pulls:
            for number in range(10):
                pulls.start_soon(pull, number)
        working = False
    await world.collector.collect()
    kept = {f"{number}.{part}" for number in range(0, 10, 2) for part in range(4)} | {"shared"}
    assert {info.digest for info in await store.list("ns")} == {digest(name) for name in kept}
    assert files(root) == {digest(name).removeprefix("sha256:") for name in kept}


async def test_many_blobs_take_no_time(world: World) -> None:
    """Marking costs as much as there is, not its square."""

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO namespaces (name) VALUES ('ns')")
        for number in range(5000):
            labels = f'{{"{REF}.1": "{digest(str(number + 1))}"}}'
            connection.execute(
                "INSERT INTO blobs VALUES ('ns', ?, 1, ?, 0, 0)", (digest(str(number)), labels)
            )

    await world.database.write(fill)
    await world.image("2500")
    before = time.process_time()
    await world.collector.collect()
    assert time.process_time() - before < 2
    assert len(await world.store.list("ns")) == 2500
