"""What keeps snapshots, and what goes with them; parity scenarios have what 2.1 can do, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from harness.snapshots import Machine

from taskd.content import ContentStore
from taskd.events import Bus, Journal
from taskd.gc.collector import Collector
from taskd.metadata import Container, ContainerStore, Database, Descriptor, Image, ImageStore
from taskd.snapshots import Snapshotter
from taskd.types import TypedValue

ROOT = {"containerd.io/gc.root": "x"}
BACK = "containerd.io/gc.bref"


@pytest.fixture
def machine(tmp_path: Path, database: Database) -> Iterator[Machine]:
    with Journal(tmp_path / "events.db") as journal:
        yield Machine(tmp_path, database, Bus(journal))


@pytest.fixture
def overlay(machine: Machine) -> Snapshotter:
    return machine.snapshotter()


@pytest.fixture
def collector(machine: Machine, overlay: Snapshotter, store: ContentStore) -> Collector:
    return Collector(machine.database, store, {"overlayfs": overlay})


async def names(snapshotter: Snapshotter) -> set[str]:
    return {info.name async for info in snapshotter.list("ns")}


async def committed(
    snapshotter: Snapshotter, name: str, parent: str = "", labels: Mapping[str, str] | None = None
) -> None:
    await snapshotter.prepare("ns", f"{name}-key", parent)
    await snapshotter.commit("ns", name, f"{name}-key", labels=labels)


async def test_parents_stay_and_what_is_on_nothing_goes(
    collector: Collector, overlay: Snapshotter, machine: Machine
) -> None:
    await committed(overlay, "one")
    await committed(overlay, "two", "one")
    await committed(overlay, "three", "two", ROOT)
    await committed(overlay, "other", "one")
    await overlay.view("ns", "view", "other")
    async with machine.bus.subscribe(['topic~="/snapshot/.*"']) as events:
        await collector.collect()
        told = await events.next_batch()
    assert await names(overlay) == {"one", "two", "three"}
    assert machine.folders() == ["1", "2", "3"]
    assert [each.envelope.topic for each in told] == ["/snapshot/remove"] * 2


async def test_a_parent_that_is_younger_goes_as_well(
    collector: Collector, overlay: Snapshotter, machine: Machine
) -> None:
    await overlay.prepare("ns", "key")
    await committed(overlay, "base")
    await overlay.commit("ns", "top", "key", parent="base")
    await collector.collect()
    assert await names(overlay) == set()
    assert machine.folders() == []


async def test_a_reference_from_what_is_referred_to(
    collector: Collector, overlay: Snapshotter, machine: Machine
) -> None:
    """containerd has had it since 2.2."""
    for name, labels in {
        "root": ROOT,
        "of snapshot": {f"{BACK}.snapshot.overlayfs": "root"},
        "of that": {f"{BACK}.snapshot.overlayfs/x": "of snapshot"},
        "of image": {f"{BACK}.image": "i"},
        "of container": {f"{BACK}.container.0": "c"},
        "of none": {f"{BACK}.image": "nosuch", f"{BACK}.imagex": "i"},
        "of no snapshot": {f"{BACK}.snapshot.native": "root"},
    }.items():
        await overlay.prepare("ns", name, labels=labels)
    target = Descriptor("a/b", "sha256:" + "1" * 64, 1)
    await ImageStore(machine.database).create("ns", Image("i", target=target))
    spec = TypedValue("spec")
    await ContainerStore(machine.database).create("ns", Container("c", runtime_name="r", spec=spec))
    await collector.collect()
    kept = {"root", "of snapshot", "of that", "of image", "of container"}
    assert await names(overlay) == kept


async def test_what_is_being_made_is_no_rubbish(
    collector: Collector, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = machine.snapshotter("native")
    await committed(native, "base", labels=ROOT)
    copy = native._driver.copy

    async def slow(folder: Path, parent: int) -> None:
        await copy(folder, parent)
        await native.sweep()
        assert folder.is_dir()

    monkeypatch.setattr(native._driver, "copy", slow)
    [mount] = await native.prepare("ns", "key", "base")
    assert Path(mount.source).is_dir()
