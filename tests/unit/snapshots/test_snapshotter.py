"""What snapshots are made of and how they are mounted; statuses are compared in tests/parity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.real import need
from harness.snapshots import Machine

from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from taskd.metadata import Resource
from taskd.snapshots import Info, Kind, Snapshotter, Usage
from taskd.snapshots.settings import SnapshotsConfig
from taskd.types import Mount


async def committed(
    snapshotter: Snapshotter, name: str, parent: str = "", content: str = ""
) -> None:
    [mount] = await snapshotter.prepare("ns", f"{name}-key", parent)
    upper = next((each[9:] for each in mount.options if each.startswith("upperdir=")), mount.source)
    Path(upper, content or name).write_text(name)
    await snapshotter.commit("ns", name, f"{name}-key")


async def test_mounts_of_an_overlay(overlay: Snapshotter) -> None:
    top = overlay.root / "snapshots"
    lone = await overlay.prepare("ns", "lone")
    assert lone == [Mount("bind", f"{top}/1/fs", options=("rw", "rbind"))]
    assert await overlay.view("ns", "view") == [
        Mount("bind", f"{top}/2/fs", options=("ro", "rbind"))
    ]
    await committed(overlay, "one")
    await committed(overlay, "two", "one")
    assert await overlay.view("ns", "view of one", "one") == [
        Mount("bind", f"{top}/3/fs", options=("ro", "rbind"))
    ]
    [view] = await overlay.view("ns", "view of two", "two")
    [active] = await overlay.prepare("ns", "active", "two")
    lower = f"lowerdir={top}/4/fs:{top}/3/fs"
    assert (view.type, view.source, view.options[0]) == ("overlay", "overlay", lower)
    own = (f"workdir={top}/7/work", f"upperdir={top}/7/fs")
    assert active.options[:3] == (*own, lower)
    assert overlay.mounts("ns", "active") == [active]
    with pytest.raises(FailedPrecondition, match="requested snapshot ns/4/two not active or view"):
        overlay.mounts("ns", "two")


async def test_native_copies(native: Snapshotter) -> None:
    [mount] = await native.prepare("ns", "key")
    files = Path(mount.source)
    (files / "file").write_text("words")
    (files / "again").hardlink_to(files / "file")
    (files / "link").symlink_to("file")
    os.mkfifo(files / "pipe")
    os.chown(files / "file", 1000, 1001)
    (files / "file").chmod(0o4711)
    os.utime(files / "file", ns=(10, 20))
    files.chmod(0o750)
    os.setxattr(files / "file", "trusted.a", b"b")
    await native.commit("ns", "base", "key")

    [copied] = await native.prepare("ns", "copy", "base")
    copy = Path(copied.source)
    assert copied.options == ("rbind", "rw")
    assert copy != files
    found, before = (copy / "file").stat(), (files / "file").stat()
    assert (found.st_uid, found.st_gid, found.st_mode, found.st_mtime_ns, found.st_nlink) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
        20,
        2,
    )
    assert os.listxattr(copy / "file") == os.listxattr(files / "file")
    assert (copy / "link").readlink() == Path("file")
    assert (copy / "pipe").is_fifo()
    assert copy.stat().st_mode & 0o777 == 0o750
    (copy / "file").write_text("other")
    assert (files / "file").read_text() == "words"

    assert await native.view("ns", "view", "base") == [
        Mount("bind", str(files), options=("rbind", "ro"))
    ]


async def test_a_copy_whose_parent_goes_meanwhile(
    native: Snapshotter, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await committed(native, "base")
    copy = native._driver.copy

    async def late(folder: Path, parent: int) -> None:
        await copy(folder, parent)
        await native.remove("ns", "base")
        await committed(native, "base")

    monkeypatch.setattr(native._driver, "copy", late)
    with pytest.raises(NotFound, match="parent snapshot base does not exist"):
        await native.prepare("ns", "key", "base")
    await native.sweep()
    assert machine.folders("native") == ["2"]


async def test_a_parents_owner_is_the_childs(overlay: Snapshotter) -> None:
    [mount] = await overlay.prepare("ns", "key")
    os.chown(mount.source, 7, 8)
    await overlay.commit("ns", "base", "key")
    await overlay.prepare("ns", "child", "base")
    found = (overlay.root / "snapshots/2/fs").stat()
    assert (found.st_uid, found.st_gid) == (7, 8)
    labels = {"containerd.io/snapshot/uidmapping": "0:1000:10,10:5:1"}
    await overlay.prepare("ns", "mapped", "base", labels)
    found = (overlay.root / "snapshots/3/fs").stat()
    assert (found.st_uid, found.st_gid) == (1000, 0)


async def test_modes_do_not_depend_on_the_umask(overlay: Snapshotter) -> None:
    before = os.umask(0o077)
    try:
        await overlay.prepare("ns", "key")
    finally:
        os.umask(before)
    folder = overlay.root / "snapshots/1"
    assert [each.stat().st_mode & 0o777 for each in (folder, folder / "fs", folder / "work")] == [
        0o700,
        0o755,
        0o711,
    ]


async def test_usage(overlay: Snapshotter) -> None:
    [mount] = await overlay.prepare("ns", "key")
    assert await overlay.usage("ns", "key") == Usage(4096, 1)
    big = Path(mount.source, "big")
    big.write_bytes(b"x" * 10_000)
    Path(mount.source, "same").hardlink_to(big)
    with Path(mount.source, "holes").open("wb") as file:
        file.truncate(1 << 30)
    expected = Usage(4096 + 12288, 3)
    assert await overlay.usage("ns", "key") == expected
    await overlay.commit("ns", "name", "key")
    big.unlink()
    assert await overlay.usage("ns", "name") == expected
    await overlay.view("ns", "view", "name")
    assert await overlay.usage("ns", "view") == Usage()


async def test_a_name_is_a_namespaces_own(overlay: Snapshotter) -> None:
    await overlay.prepare("one", "key")
    await overlay.prepare("two", "key")
    await overlay.remove("one", "key")
    assert overlay.stat("two", "key").kind is Kind.ACTIVE
    with pytest.raises(NotFound):
        overlay.stat("one", "key")


async def test_many_are_listed(overlay: Snapshotter) -> None:
    for number in range(230):
        await overlay.view("ns", f"view-{number:03}")
    names = [info.name async for info in overlay.list("ns")]
    assert names == [f"view-{number:03}" for number in range(230)]
    some = [info.name async for info in overlay.list("ns", ["name~=view-.*9$", "kind==active"])]
    assert some == [f"view-{number:03}" for number in range(9, 230, 10)]


async def test_a_committed_snapshot_can_be_given_a_parent(overlay: Snapshotter) -> None:
    await committed(overlay, "base")
    await overlay.prepare("ns", "key")
    await overlay.commit("ns", "top", "key", parent="base")
    assert overlay.stat("ns", "top").parent == "base"
    with pytest.raises(FailedPrecondition, match="child"):
        await overlay.remove("ns", "base")
    await overlay.prepare("ns", "other", "base")
    with pytest.raises(NotFound, match="parent snapshot nosuch"):
        await overlay.prepare("ns", "third")
        await overlay.commit("ns", "topmost", "third", parent="nosuch")


async def test_a_lease_holds_what_is_made_and_what_was_there(
    overlay: Snapshotter, machine: Machine
) -> None:
    await machine.leases.create("ns", "lease", {})

    async def held() -> list[Resource]:
        return list(await machine.leases.list_resources("ns", "lease"))

    await overlay.prepare("ns", "key", lease="lease")
    await overlay.prepare("ns", "other")
    with pytest.raises(AlreadyExists):
        await overlay.prepare("ns", "other", lease="lease")
    both = [Resource(name, "snapshots/overlayfs") for name in ("key", "other")]
    assert await held() == both
    await overlay.commit("ns", "name", "key", lease="lease")
    assert await held() == [Resource(name, "snapshots/overlayfs") for name in ("name", "other")]
    await overlay.remove("ns", "other", lease="lease")
    assert await held() == [Resource("name", "snapshots/overlayfs")]
    for doing in (
        overlay.prepare("ns", "new", lease="nosuch"),
        overlay.commit("ns", "new", "name", lease="nosuch"),
    ):
        with pytest.raises(NotFound, match="lease does not exist"):
            await doing
    await overlay.sweep()
    assert machine.folders() == ["1"]


async def test_labels(overlay: Snapshotter) -> None:
    await overlay.prepare("ns", "key", labels={"a": "1", "b": "2"})
    info = await overlay.update("ns", Info("key", labels={"a": "", "c": "3"}), ["labels.c"])
    assert info.labels == {"a": "1", "b": "2", "c": "3"}
    await overlay.update("ns", Info("key"), ["labels.a"])
    assert overlay.stat("ns", "key").labels == {"b": "2", "c": "3"}
    await overlay.update("ns", Info("key", labels={"z": "9"}))
    assert overlay.stat("ns", "key").labels == {"z": "9"}
    with pytest.raises(InvalidArgument, match=r"info.Labels: label key and value greater"):
        await overlay.prepare("ns", "other", labels={"a": "x" * 5000})


async def test_removal_can_be_waited_for(machine: Machine) -> None:
    for name in ("overlayfs", "native"):
        later = machine.snapshotter(name)
        await later.prepare("ns", "key")
        await later.remove("ns", "key")
        assert len(machine.folders(name)) == 1
        at_once = machine.snapshotter(name, SnapshotsConfig(sync_remove=True))
        await at_once.prepare("ns", "key")
        await at_once.remove("ns", "key")
        assert machine.folders(name) == []


async def test_options_of_overlays(machine: Machine) -> None:
    config = SnapshotsConfig(mount_options=("volatile", "index=on"))
    overlay = machine.snapshotter(config=config)
    await committed(overlay, "base")
    [mount] = await overlay.prepare("ns", "key", "base")
    assert mount.options[3:] == ("volatile", "index=on")


ROOTLESS = """
import asyncio, sys
from pathlib import Path
from taskd import mounts
from taskd.events import Bus, Journal
from taskd.metadata import Database
from taskd.snapshots import load

async def main(root):
    with Database(root / "metadata.db") as database, Journal(root / "events.db") as journal:
        for snapshotter in load(database, Bus(journal), root).values():
            [mount] = await snapshotter.prepare("ns", "one")
            Path(mount.source, "file").write_text("words")
            await snapshotter.commit("ns", "base", "one")
            [mount] = await snapshotter.prepare("ns", "two", "base")
            target = root / "target"
            target.mkdir(exist_ok=True)
            mounts.mount(mount.type, mount.source, target, mount.options)
            assert (target / "file").read_text() == "words"
            (target / "file").unlink()
            assert not list(target.iterdir())
            mounts.unmount_all(target)
            await snapshotter.commit("ns", "top", "two")
            [mount] = await snapshotter.view("ns", "three", "top")
            mounts.mount(mount.type, mount.source, target, mount.options)
            assert not list(target.iterdir())
            mounts.unmount_all(target)
            print(snapshotter.name, "userxattr" in mount.options, snapshotter.capabilities)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_without_root(tmp_path: Path) -> None:
    """In a user namespace, as rootless daemons run, overlays are really mounted."""
    need("unshare")
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*command, sys.executable, "-c", ROOTLESS, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("overlayfs True ()\nnative False ()\n", 0), (
        done.stderr
    )
