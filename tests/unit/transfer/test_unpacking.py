"""What becomes of snapshots while layers come, or do not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import anyio
import pytest
from harness.fake_registry import FakeRegistry, Request, serving
from harness.registry import Image, layer
from harness.transfers import NAMESPACE, Parts

from taskd.errors import FailedPrecondition, InvalidArgument, NotFound, Unknown
from taskd.images.platforms import Platform
from taskd.metadata.leases import EXPIRE_LABEL
from taskd.snapshots import Kind
from taskd.transfer.store import Store, Unpack

IMAGE = Image(tuple(layer({f"file{number}": b"x"}) for number in range(4)))
LINUX = Platform("linux", "amd64")


def chain(image: Image) -> list[str]:
    found: list[str] = []
    for each in image.layers:
        digest = f"sha256:{hashlib.sha256(each).hexdigest()}"
        pair = f"{found[-1]} {digest}" if found else ""
        found.append(f"sha256:{hashlib.sha256(pair.encode()).hexdigest()}" if pair else digest)
    return found


@pytest.fixture
async def registry(parts: Parts) -> AsyncIterator[FakeRegistry]:
    parts.diff_ids = {
        blob.digest: f"sha256:{hashlib.sha256(content).hexdigest()}"
        for blob, content in zip(IMAGE.blobs[1:], IMAGE.layers, strict=True)
    }
    async with serving(IMAGE) as found:
        yield found


def store(registry: FakeRegistry, snapshotter: str = "overlayfs") -> Store:
    return Store(registry.name(), unpacks=(Unpack(LINUX, snapshotter),))


async def snapshots(parts: Parts) -> dict[str, str]:
    """Names and parents; all of them are committed."""
    found = {}
    async for info in parts.snapshotters["overlayfs"].list(NAMESPACE):
        assert info.kind is Kind.COMMITTED, info
        found[info.name] = info.parent
    return found


@pytest.mark.parametrize(
    ("capabilities", "wanting"),
    [((), ()), (("rebase",), ()), (("rebase",), (2, 4))],
    ids=["in order", "in any order", "some in order"],
)
async def test_each_on_the_one_below(
    parts: Parts, registry: FakeRegistry, capabilities: tuple[str, ...], wanting: tuple[int, ...]
) -> None:
    parts.snapshotters["overlayfs"].capabilities = capabilities
    parts.want_parents = {IMAGE.blobs[number].digest for number in wanting}
    await parts.pull(registry.name(), store(registry))
    names = chain(IMAGE)
    assert await snapshots(parts) == dict(zip(names, ["", *names], strict=False))
    expected = [blob.digest for blob in IMAGE.blobs[1:]]
    assert sorted(parts.applied) == sorted(expected)
    if not capabilities:
        assert parts.applied == expected
    for number in wanting:
        assert parts.applied.index(expected[number - 1]) > parts.applied.index(expected[0])
    assert await parts.left() == []
    assert len(await snapshots(parts)) == 4  # the image holds them
    await parts.images.delete(NAMESPACE, registry.name())
    assert await parts.left() == []
    assert (await snapshots(parts), await parts.digests()) == ({}, set())


async def test_what_is_unpacked_is_neither_fetched_nor_unpacked(
    parts: Parts, registry: FakeRegistry
) -> None:
    await parts.pull(registry.name(), store(registry))
    await parts.images.delete(NAMESPACE, registry.name())
    for name in chain(IMAGE)[3:]:
        await parts.snapshotters["overlayfs"].remove(NAMESPACE, name)
    for blob in IMAGE.blobs[1:]:
        await parts.content.delete(NAMESPACE, blob.digest)
    parts.applied.clear()
    registry.asked.clear()
    await parts.pull(registry.name(), store(registry))
    assert parts.applied == [IMAGE.blobs[4].digest]
    assert [blob.digest for blob in IMAGE.blobs if registry.asked["GET", blob.digest]] == [
        IMAGE.blobs[4].digest
    ]


async def test_unpacked_while_later_ones_come(parts: Parts, registry: FakeRegistry) -> None:
    last, unpacked = IMAGE.blobs[4], anyio.Event()

    async def late(request: Request) -> bool:
        if request.path.endswith(last.digest):
            with anyio.fail_after(10):
                while len(parts.applied) < 3:
                    await anyio.sleep(0.01)
            unpacked.set()
        return False

    registry.handlers.append(late)
    await parts.pull(registry.name(), store(registry))
    assert unpacked.is_set()


async def test_twice_at_once(parts: Parts, registry: FakeRegistry) -> None:
    transfers = parts.transfers()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(parts.pull_with, transfers, registry.name(), store(registry))
    assert sorted(parts.applied) == sorted(blob.digest for blob in IMAGE.blobs[1:])
    assert await parts.left() == []
    assert len(await snapshots(parts)) == 4


async def test_a_layer_that_is_another_one(parts: Parts, registry: FakeRegistry) -> None:
    parts.diff_ids[IMAGE.blobs[3].digest] = f"sha256:{'0' * 64}"
    with pytest.raises(FailedPrecondition, match="wrong diff id .* calculated on extraction"):
        await parts.pull(registry.name(), store(registry))
    assert await parts.left() == []
    assert (await snapshots(parts), await parts.digests()) == ({}, set())


async def test_a_layer_that_cannot_be_unpacked(parts: Parts, registry: FakeRegistry) -> None:
    parts.fails = Unknown("no space left on device")
    words = 'failed to extract layer .* to overlayfs as "extract-.*": no space left on device'
    with pytest.raises(Unknown, match=words):
        await parts.pull(registry.name(), store(registry))
    assert await parts.left() == []
    assert (await snapshots(parts), await parts.digests()) == ({}, set())


async def test_a_layer_that_does_not_come(parts: Parts, registry: FakeRegistry) -> None:
    async def absent(request: Request) -> bool:
        if request.path.endswith(IMAGE.blobs[3].digest):
            await request.answer(404)
            return True
        return False

    registry.handlers.append(absent)
    with pytest.raises(NotFound, match="could not fetch"):
        await parts.pull(registry.name(), store(registry))
    assert await parts.left() == []
    assert (await snapshots(parts), await parts.digests()) == ({}, set())


async def test_cancelled(parts: Parts, registry: FakeRegistry) -> None:
    async with anyio.create_task_group() as group:
        parts.applies_for = 30.0
        group.start_soon(parts.pull, registry.name(), store(registry))
        with anyio.fail_after(10):
            while not parts.applied:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert await parts.left() == []
    assert (await snapshots(parts), await parts.digests()) == ({}, set())


async def test_another_number_of_layers(parts: Parts, registry: FakeRegistry) -> None:
    class Lying(Image):
        @property
        def blobs(self):  # type: ignore[no-untyped-def]
            config, *layers = super().blobs
            return [config, *layers[:-1]]

    registry.image = Lying(IMAGE.layers)
    words = "number of layers and diffIDs don't match: 3 != 4"
    with pytest.raises(InvalidArgument, match=words):
        await parts.pull(registry.name(), store(registry))
    assert await parts.left() == []


async def test_for_another_system(parts: Parts, registry: FakeRegistry) -> None:
    with pytest.raises(InvalidArgument, match="no unpack platforms defined"):
        await parts.pull(registry.name(), store(registry, "zfs"))


async def test_taken_up_where_a_killed_daemon_has_left_it(
    parts: Parts, registry: FakeRegistry
) -> None:
    """Leases of its own are taken over, and nobody else's."""
    overlay = parts.snapshotters["overlayfs"]
    ours, others = {"io.taskd.transfer": registry.name()}, {"io.taskd.transfer": "h/other:1"}
    for name, labels in (("ours", ours), ("others", others), ("client", {})):
        far = {EXPIRE_LABEL: "2999-01-01T00:00:00Z"}
        await parts.leases.create(NAMESPACE, name, {**labels, **far})
        await overlay.prepare(NAMESPACE, f"extract-{name}", lease=name)
    large = IMAGE.blobs[1]
    ref = f"layer-{large.digest}"
    size = len(large.content)
    async with parts.content.writer(NAMESPACE, ref, size, large.digest, "ours") as writer:
        await writer.write(large.content[:50])
    await parts.collector.collect()
    await parts.pull(registry.name(), store(registry))
    (request,) = [each for each in registry.requests if each.path.endswith(large.digest)]
    assert request.offset == 50
    assert [each.id for each in await parts.leases.list(NAMESPACE)] == ["client", "others"]
    await parts.collector.collect()
    active = [each.name async for each in overlay.list(NAMESPACE, ["kind==active"])]
    assert active == ["extract-client", "extract-others"]
