"""The snapshots service, with each snapshotter."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario
from parity.scenarios.content import COMMIT, request, write
from parity.scenarios.images import image, target

from taskd import digests
from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.proto.containerd.services.snapshots.v1 import (
    Info,
    MountsRequest,
    SnapshotsStub,
)
from taskd.proto.google.protobuf import FieldMask

NEWER = ("1.7", "2")


class Snapshots:
    """A snapshotter of the daemon that is recorded."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        self.name = name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        called = getattr(self.recorder.snapshots, method)

        async def call(*, lease: str = "", **fields: Any) -> Any:
            metadata = {"containerd-lease": lease} if lease else None
            return await called(snapshotter=self.name, metadata=metadata, **fields)

        return call

    async def committed(self, name: str, parent: str = "", **fields: Any) -> None:
        await self.prepare(key=f"{name}-key", parent=parent)
        await self.commit(name=name, key=f"{name}-key", **fields)

    async def folder(self, key: str) -> Path:
        """Where an active snapshot is written to."""
        stub = self.recorder.stub(SnapshotsStub)
        [mount] = (await stub.mounts(MountsRequest(snapshotter=self.name, key=key))).mounts
        uppers = [each[9:] for each in mount.options if each.startswith("upperdir=")]
        return Path(uppers[0] if uppers else mount.source)


Play = Callable[[Recorder, Snapshots], Awaitable[None]]


def each(*, alone: bool = False, generations: tuple[str, ...] = NEWER) -> Callable[[Play], Play]:
    """A scenario with each snapshotter."""

    def add(play: Play) -> Play:
        for name in ("overlayfs", "native"):

            async def called(r: Recorder, name: str = name) -> None:
                await play(r, Snapshots(r, name))

            title = f"snapshots: {play.__name__.replace('_', ' ')}, {name}"
            scenario(title, alone=alone, generations=generations)(called)
        return play

    return add


@each()
async def mounts_without_parent(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a")
    await s.view(key="v")
    for key in ("a", "v"):
        await s.mounts(key=key)
        await s.stat(key=key)


@each()
async def mounts_on_one_parent(r: Recorder, s: Snapshots) -> None:
    await s.committed("one")
    await s.prepare(key="a", parent="one")
    await s.view(key="v", parent="one")
    for key in ("a", "v", "one", "nosuch"):
        await s.mounts(key=key)


@each()
async def mounts_on_several_parents(r: Recorder, s: Snapshots) -> None:
    await s.committed("one")
    await s.committed("two", "one")
    await s.committed("three", "two")
    for parent in ("two", "three"):
        await s.prepare(key=f"a-{parent}", parent=parent)
        await s.view(key=f"v-{parent}", parent=parent)
        await s.mounts(key=f"a-{parent}")
        await s.mounts(key=f"v-{parent}")


@each()
async def keys_that_are_taken(r: Recorder, s: Snapshots) -> None:
    await s.committed("one")
    await s.prepare(key="a")
    await s.view(key="v")
    for key in ("a", "v", "one"):
        await s.prepare(key=key)
        await s.view(key=key)
        await s.prepare(key=key, parent="nosuch")
        await s.prepare(key=key, parent="a")


@each()
async def parents_that_cannot_be(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a", parent="nosuch")
    await s.view(key="a", parent="nosuch")
    await s.prepare(key="a")
    await s.view(key="v")
    for parent in ("a", "v", "b"):
        await s.prepare(key="b", parent=parent)
        await s.view(key="b", parent=parent)
    await s.list()


@each()
async def no_names(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="")
    await s.view(key="")
    await s.prepare(key="a")
    await s.commit(name="", key="a")
    await s.commit(name="b", key="")
    await s.commit(name="", key="")
    for method in (s.mounts, s.stat, s.remove, s.usage):
        await method(key="")
    await s.update(info=Info())
    await s.list()


@each()
async def odd_names(r: Recorder, s: Snapshots) -> None:
    for key in ("a/b", "../../x", " ", "a b", "ä", "x" * 300, 'a"b', "a\nb"):
        await s.prepare(key=key)
        await s.stat(key=key)
        await s.commit(name=f"{key}-c", key=key)
        await s.prepare(key=key, parent=f"{key}-c")
        await s.prepare(key=key, parent="nosuch")
        await s.mounts(key=f"{key}-c")
    await s.list()


@each()
async def labels(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a", labels={"a": "1", "empty": "", "containerd.io/snapshot/x": "2"})
    await s.stat(key="a")
    await s.view(key="v", labels={"v": "1"})
    await s.stat(key="v")
    await s.prepare(key="b", labels={"": "x"})
    await s.prepare(key="b", labels={"a": "x" * 4096})
    await s.view(key="b", labels={"a": "x" * 4096})
    await s.commit(name="c", key="a", labels={"a": "x" * 4096})
    await s.commit(name="c", key="a", labels={"": "x"})
    await s.commit(name="c", key="a", labels={"b": "1", "containerd.io/snapshot/y": "2"})
    await s.stat(key="c")
    await s.prepare(key="d", parent="c")
    await s.stat(key="d")
    await s.list()


@each()
async def a_target(r: Recorder, s: Snapshots) -> None:
    """What is prepared is to become a snapshot that may be there by now."""
    of = "containerd.io/snapshot.ref"
    await s.committed("c1")
    await s.prepare(key="a", labels={of: "c1"})
    await s.view(key="a", labels={of: "c1"})
    await s.prepare(key="a", parent="nosuch", labels={of: "c1"})
    await s.prepare(key="c1", labels={of: "c1"})
    await s.prepare(key="a", labels={of: "c2"})
    await s.prepare(key="b", labels={of: "a"})
    await s.stat(key="a")
    await s.commit(name="c2", key="a", labels={of: "c2"})
    await s.prepare(key="b", parent="c1", labels={of: "c2"})
    await s.list()


@each()
async def commit(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a", labels={"a": "1"})
    await s.commit(name="c", key="a", labels={"b": "2"})
    await s.stat(key="c")
    await s.stat(key="a")
    await s.commit(name="c", key="a")
    await s.commit(name="d", key="a")
    await s.prepare(key="a", parent="c")
    await s.commit(name="a", key="a")
    await s.commit(name="c", key="a")
    await s.commit(name="d", key="a")
    await s.stat(key="d")
    await s.list()


@each()
async def commit_of_what_is_not_active(r: Recorder, s: Snapshots) -> None:
    await s.commit(name="c", key="a")  # nothing has been there yet
    await s.committed("c")
    await s.view(key="v")
    await s.view(key="vc", parent="c")
    for key in ("v", "vc", "c", "nosuch"):
        await s.commit(name="new", key=key)
        await s.commit(name="c", key=key)
    await s.list()


@each()
async def remove(r: Recorder, s: Snapshots) -> None:
    await s.remove(key="a")
    await s.committed("c")
    await s.prepare(key="a", parent="c")
    await s.view(key="v", parent="c")
    for key in ("c", "a", "c", "v", "v", "c", "c"):
        await s.remove(key=key)
    await s.list()
    await s.prepare(key="a")
    await s.list()


@each()
async def unknown_names(r: Recorder, s: Snapshots) -> None:
    for _ in range(2):  # without and with others beside them
        for method in (s.mounts, s.stat, s.remove, s.usage):
            await method(key="nosuch")
        await s.update(info=Info(name="nosuch", labels={"a": "1"}))
        await s.list(filters=["name==nosuch"])
        await s.prepare(key="a")


@each()
async def update(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a", labels={"a": "1", "b": "2", "containerd.io/snapshot/x": "3"})

    async def change(*paths: str, **labels: str) -> None:
        mask = FieldMask(paths=list(paths)) if paths else None
        await s.update(info=Info(name="a", labels=labels), update_mask=mask)
        await s.stat(key="a")

    await change("labels.a", a="4", b="5")
    await change("labels.new", new="6")
    await change("labels.a")
    await change("labels.containerd.io/snapshot/x")
    await change("labels", z="7")
    await change("labels.y", "labels", y="8")
    await change("labels", "labels.y", y="9", x="9")
    await change("name")
    await change("labels.a", "kind", a="10")
    await change("parent", "labels.a", a="11")
    await change("labelsa", a="12")
    await change("labels.", **{"": "13"})
    await change(a="14", empty="")
    await change(a="x" * 4096)
    await change()
    await s.commit(name="c", key="a")
    await s.update(info=Info(name="c", labels={"on": "committed"}))
    await s.update(info=Info(name="c", parent="x", labels={"on": "again"}))
    await s.stat(key="c")


@each()
async def filters(r: Recorder, s: Snapshots) -> None:
    await s.list()
    await s.committed("c", labels={"a": "1"})
    await s.prepare(key="a", parent="c", labels={"a": "2", "containerd.io/x": "3"})
    await s.view(key="v", parent="c")
    for expressions in (
        ["kind==active"],
        ["kind==ACTIVE"],
        ["kind==Committed"],
        ["kind==2"],
        ["kind!=active"],
        ["kind"],
        ["kind==view", "kind==committed"],
        ["parent==c"],
        ["parent==''"],
        ['parent==""'],
        ["parent"],
        ["name==a"],
        ["name~=^[av]$"],
        ["labels.a"],
        ["labels.a==1"],
        ["labels"],
        ['labels."containerd.io/x"==3'],
        ["kind==active,labels.a==2"],
        ["created_at"],
        [""],
        ["nothing"],
    ):
        await s.list(filters=expressions)


@each()
async def bad_filters(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a")
    for expression in ("name==(", "name=", "==x", "name~=[", "a b"):
        await s.list(filters=[expression])
        await s.list(filters=["name==a", expression])


@each()
async def more_than_one_message(r: Recorder, s: Snapshots) -> None:
    for number in range(205):
        await s.view(key=f"v{number:03}")
    r.lines.clear()
    await s.list()
    await s.list(filters=["name~=v..7"])


@each()
async def usage(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a")
    await s.usage(key="a")
    folder = await s.folder("a")
    (folder / "file").write_bytes(b"x" * 10_000)
    (folder / "same").hardlink_to(folder / "file")
    (folder / "link").symlink_to("file")
    with (folder / "holes").open("wb") as holes:
        holes.truncate(1 << 20)
    (folder / "in").mkdir()
    (folder / "in/side").write_bytes(b"x")
    os.mkfifo(folder / "in/pipe")
    await s.usage(key="a")
    await s.view(key="v")
    await s.usage(key="v")
    await s.commit(name="c", key="a")
    await s.usage(key="c")
    (folder / "file").unlink()
    await s.usage(key="c")
    await s.view(key="vc", parent="c")
    await s.usage(key="vc")
    await s.prepare(key="ac", parent="c")
    await s.usage(key="ac")


@each()
async def folders(r: Recorder, s: Snapshots) -> None:
    """What is on disk, whose it is, and what becomes of it."""
    top = r.daemon.root / f"io.containerd.snapshotter.v1.{s.name}" / "snapshots"

    def show(folder: Path) -> None:
        for path in (folder, *sorted(folder.rglob("*"))):
            found = path.lstat()
            r.note(f"{path} {found.st_mode:o} {found.st_uid}:{found.st_gid}")

    await s.prepare(key="a")
    folder = await s.folder("a")
    show(folder.parent if s.name == "overlayfs" else folder)
    os.chown(folder, 12, 34)
    folder.chmod(0o701)
    (folder / "file").write_text("x")
    os.chown(folder / "file", 5, 6)
    (folder / "file").chmod(0o4755)
    await s.commit(name="c", key="a")
    await s.prepare(key="b", parent="c")
    folder = await s.folder("b")
    show(folder.parent if s.name == "overlayfs" else folder)
    await s.view(key="v", parent="c")
    r.note(f"{oct(top.stat().st_mode)} {oct(top.parent.stat().st_mode)}")


@scenario(generations=("2",))
async def mapped_owners(r: Recorder) -> None:
    s = Snapshots(r, "overlayfs")
    uid, gid = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
    owned = 4  # of those that follow
    await s.committed("c")
    for number, labels in enumerate(
        (
            {uid: "0:1000:10", gid: "0:2000:10"},
            {uid: "5:7:1,0:1000:2", gid: "0:2000:10,1:2:3"},
            {uid: "0:1000:10"},
            {gid: "0:1000:10"},
            {uid: "1:1000:10", gid: "0:1:1"},
            {uid: "0:1000:10", gid: "1:1:1"},
            {uid: "0:-1:10"},
            {uid: "0:4294967295:1"},
            {uid: "0:1000:0"},
            {uid: ""},
        )
    ):
        for parent in ("", "c"):
            key = f"{number}-{parent}"
            await s.prepare(key=key, parent=parent, labels=labels)
            if number < owned:
                found = (await s.folder(key)).stat()
                r.note(f"{found.st_uid}:{found.st_gid}")
    await s.list()


@each()
async def unknown_snapshotters(r: Recorder, s: Snapshots) -> None:
    for other in (Snapshots(r, f"{s.name}x"), Snapshots(r, "")):
        await other.prepare(key="a")
        await other.view(key="a")
        await other.commit(name="c", key="a")
        for method in (other.mounts, other.stat, other.remove, other.usage):
            await method(key="a")
        await other.update(info=Info(name="a"))
        await other.list()
        await other.cleanup()


@each()
async def no_namespace(r: Recorder, s: Snapshots) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        for other in (Snapshots(none, s.name), Snapshots(bad, s.name)):
            await other.prepare(key="a")
            await other.view(key="a")
            await other.commit(name="c", key="a")
            for method in (other.mounts, other.stat, other.remove, other.usage):
                await method(key="a")
            await other.update(info=Info(name="a"))
            await other.list()
        await Snapshots(none, "nosuch").prepare(key="a")


@each()
async def cleanup(r: Recorder, s: Snapshots) -> None:
    await s.prepare(key="a")
    await s.remove(key="a")
    await s.cleanup()


@each()
async def namespaces_are_apart(r: Recorder, s: Snapshots) -> None:
    await s.committed("c")
    await s.prepare(key="a", parent="c")
    async with r.within(f"{r.namespace}-other") as other:
        o = Snapshots(other, s.name)
        await o.list()
        await o.stat(key="a")
        await o.prepare(key="b", parent="c")
        await o.prepare(key="a")
        await o.commit(name="c", key="a")
        await o.list()
        await other.namespaces.delete(name=other.namespace)
        await o.remove(key="c")
        await other.namespaces.delete(name=other.namespace)
    await s.list()
    await r.namespaces.delete(name=r.namespace)


@each()
async def leases(r: Recorder, s: Snapshots) -> None:
    async def held() -> None:
        await r.leases.list_resources(id="l")

    await r.leases.create(id="l")
    await s.prepare(key="a", lease="l")
    await held()
    await s.view(key="v", lease="l")
    await s.prepare(key="b")
    await s.prepare(key="b", lease="l")
    await held()
    await s.commit(name="c", key="a", lease="l")
    await held()
    await s.commit(name="d", key="b")
    await held()
    await s.prepare(key="x", lease="l", labels={"containerd.io/snapshot.ref": "d"})
    await held()
    await s.remove(key="v", lease="l")
    await s.remove(key="c")
    await held()
    await s.prepare(key="x", lease="nosuch")
    await s.prepare(key="d", lease="nosuch")
    await s.prepare(key="x")
    await s.commit(name="y", key="x", lease="nosuch")
    await s.commit(name="d", key="x", lease="l")
    await s.remove(key="x", lease="nosuch")
    await held()
    await s.list()


@each()
async def at_once(r: Recorder, s: Snapshots) -> None:
    await s.committed("c")
    await r.all(*(s.view(key="a", parent="c") for _ in range(8)))
    await s.prepare(key="b", parent="c")
    await r.all(*(s.remove(key="b") for _ in range(4)))
    await s.list()


@scenario(alone=True, generations=NEWER)
async def update_nothing(r: Recorder) -> None:
    await Snapshots(r, "overlayfs").update()


REF = "containerd.io/gc.ref.snapshot"


@each(alone=True)
async def garbage(r: Recorder, s: Snapshots) -> None:
    """What keeps snapshots, each with those it is on."""
    top = r.daemon.root / f"io.containerd.snapshotter.v1.{s.name}" / "snapshots"

    async def collect() -> None:
        await r.images.create(image=image("none"))
        await r.images.delete(name="none", sync=True)
        await s.list()
        r.note(f"{len([each for each in top.iterdir() if each.name.isdigit()])} folders")

    await r.leases.create(id="l")
    root = {"containerd.io/gc.root": "x"}
    for name, labels in (
        ("none", {}),
        ("root", root),
        ("expire", {"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}),
        ("leased", {}),
        ("image", {}),
        ("content", {}),
        ("container", {}),
        ("label", {}),
        ("other", {}),
        ("snapshot", {}),
    ):
        await s.prepare(key=f"{name}-1", lease="l")
        await s.commit(name=f"{name}-base", key=f"{name}-1", lease="l")
        await s.prepare(key=f"{name}-2", parent=f"{name}-base", lease="l")
        await s.commit(name=name, key=f"{name}-2", labels=labels, lease="l")
    await s.prepare(key="active", parent="leased", lease="l")
    await s.view(key="view", parent="leased", lease="l")
    data = b"content"
    refers = {f"{REF}.{s.name}/x": "content"}
    await write(r, "ref", request(COMMIT, data, labels=refers), lease="l")
    await r.images.create(
        image=image(
            "i",
            target=target(digest=digests.of(data), size=len(data)),
            labels={f"{REF}.{s.name}": "image", f"{REF}.nosuch": "other", f"{REF}x": "other"},
        )
    )
    runtime = ContainerRuntime(name=RUNC)
    await r.containers.create(
        container=Container(
            id="one",
            runtime=runtime,
            spec=r.spec("one"),
            snapshotter=s.name,
            snapshot_key="container",
            labels={f"{REF}.{s.name}": "label"},
        )
    )
    await s.update(info=Info(name="root", labels={**root, f"{REF}.{s.name}": "snapshot"}))
    await collect()
    await r.leases.create(id="keep")
    await s.prepare(key="leased", lease="keep")
    await r.leases.delete(id="l", sync=True)
    await collect()
    await r.leases.delete(id="keep", sync=True)
    await r.containers.delete(id="one")
    await r.images.delete(name="i", sync=True)
    await collect()
    await s.update(info=Info(name="root"))
    await collect()


@each(alone=True)
async def a_flat_lease(r: Recorder, s: Snapshots) -> None:
    await r.leases.create(id="flat", labels={"containerd.io/gc.flat": "x"})
    await r.leases.create(id="l")
    await s.committed("base")
    await s.committed("referred")
    await s.prepare(key="k", parent="base", lease="flat")
    await s.update(info=Info(name="k", labels={f"{REF}.{s.name}": "referred"}))
    await r.leases.delete(id="l", sync=True)
    await s.list()
