"""The containers service: records, their masks and limits, filters, and namespaces."""

from __future__ import annotations

from typing import Any

from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario

from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import FieldMask, Timestamp

SPEC = AnyMessage(type_url="some.Spec", value=b"{}")
RUNTIME = ContainerRuntime(name=RUNC)
LONG = "x" * 4096


def container(name: str = "one", **fields: Any) -> Container:
    return Container(**{"id": name, "runtime": RUNTIME, "spec": SPEC, **fields})


async def update(r: Recorder, changed: Container | None, *paths: str) -> None:
    mask = FieldMask(paths=list(paths)) if paths else None
    await r.containers.update(container=changed, update_mask=mask)


@scenario()
async def lifecycle(r: Recorder) -> None:
    await r.containers.get(id="one")
    await r.containers.create(container=container(labels={"a": "1"}, image="i"))
    await r.containers.get(id="one")
    await r.containers.list()
    await r.containers.delete(id="one")
    await r.containers.delete(id="one")
    await r.containers.get(id="one")
    await r.containers.list()


@scenario()
async def create_twice(r: Recorder) -> None:
    await r.containers.create(container=container())
    await r.containers.create(container=container(labels={"a": "1"}))
    await r.containers.get(id="one")


@scenario()
async def bad_ids(r: Recorder) -> None:
    for name in ("", "-", "a b", "a/b", "../a", "a..b", "a_", ".a", "x" * 76, "x" * 77, "é", "a\n"):
        await r.containers.create(container=container(name))
    await r.containers.get(id="")
    await r.containers.delete(id="")
    await r.containers.list()


@scenario()
async def what_a_container_needs(r: Recorder) -> None:
    await r.containers.create(container=container(runtime=None))
    await r.containers.create(container=container(runtime=ContainerRuntime()))
    await r.containers.create(container=container(spec=AnyMessage()))
    await r.containers.create(container=container(snapshot_key="key"))
    await r.containers.create(container=container(snapshotter="native"))
    await r.containers.create(container=container("two", snapshotter="none", snapshot_key="key"))
    await r.containers.create(container=container("three", image="none"))
    await r.containers.list()


@scenario()
async def without_a_spec(r: Recorder) -> None:
    await r.containers.create(container=container(spec=None))
    await r.containers.create(container=container("two"))
    await update(r, container("two", spec=None))
    await update(r, Container(id="two"))


@scenario(alone=True)
async def create_nothing(r: Recorder) -> None:
    await r.containers.create()


@scenario(alone=True)
async def update_nothing(r: Recorder) -> None:
    await r.containers.update()


@scenario()
async def labels_have_a_limit(r: Recorder) -> None:
    await r.containers.create(container=container(labels={"a": "x" * 4095}))
    await r.containers.create(container=container("two", labels={"a": LONG}))
    await r.containers.create(container=container("three", labels={"k" * 4096: ""}))
    await r.containers.create(container=container("four", labels={"": "1", "empty": ""}))
    await update(r, container(labels={"b": LONG}), "labels.b")
    await update(r, container(labels={"b": LONG}))
    await r.containers.list()


@scenario()
async def extensions(r: Recorder) -> None:
    kept = {"k": SPEC, "empty": AnyMessage(), "other": AnyMessage(type_url="t", value=b"v")}
    await r.containers.create(container=container(extensions=kept))
    await r.containers.get(id="one")
    await r.containers.create(container=container("two", extensions={"": SPEC}))
    changed = {"k": AnyMessage(type_url="t", value=b"w"), "new": SPEC}
    await update(r, container(extensions=changed), "extensions.k")
    await update(r, container(extensions=changed), "extensions")
    await update(r, container(), "extensions.new")
    await r.containers.get(id="one")


@scenario()
async def runtime_options(r: Recorder) -> None:
    options = AnyMessage(type_url="containerd.runc.v1.Options", value=b"")
    await r.containers.create(container=container(runtime=ContainerRuntime(RUNC, options)))
    await r.containers.get(id="one")
    await update(r, container(runtime=ContainerRuntime("other", options)), "runtime")
    await update(r, container(runtime=ContainerRuntime(RUNC)), "runtime.options")


@scenario()
async def given_times_are_not_kept(r: Recorder) -> None:
    time = Timestamp(seconds=5)
    await r.containers.create(container=container(created_at=time, updated_at=time))
    await update(r, container(created_at=time), "created_at")


@scenario()
async def update_by_mask(r: Recorder) -> None:
    await update(r, container())
    await r.containers.create(container=container(labels={"a": "1", "b": "2"}, image="i"))
    changed = container(labels={"a": "9", "c": "3"}, image="j", spec=AnyMessage("other", b"[]"))
    for paths in (
        ["labels.c"],
        ["labels.b"],
        ["labels"],
        ["labels.z"],
        ["image"],
        ["spec"],
        ["labels.a", "image", "spec"],
        ["id"],
        [""],
        ["nothing"],
        ["snapshotter"],
        ["snapshot_key"],
        ["snapshotkey"],
        ["runtime"],
        ["created_at"],
        ["labels", "nothing"],
    ):
        await update(r, changed, *paths)
    await r.containers.get(id="one")


@scenario()
async def update_of_everything(r: Recorder) -> None:
    await r.containers.create(container=container(labels={"a": "1"}, image="i"))
    await update(r, container(labels={"c": "3"}))
    await r.containers.get(id="one")
    await update(r, container(image="j", runtime=None))
    await update(r, container(runtime=ContainerRuntime("other")))
    await update(r, container(snapshotter="native", snapshot_key="key"))
    await update(r, container("two"))
    await update(r, container("bad/id"))
    await r.containers.get(id="one")


@scenario()
async def filters(r: Recorder) -> None:
    await r.containers.create(container=container(labels={"a": "1", "b.c": "2"}, image="i"))
    await r.containers.create(container=container("two", labels={"a": "2"}))
    await r.containers.create(container=container("three", image="docker.io/library/x:1"))
    for expressions in (
        ["id==one"],
        ["id!=one"],
        ["id~=^t"],
        ["id==one", "id==two"],
        ["id==one,image==i"],
        ["id==one,image==j"],
        ["labels.a"],
        ["labels.a==1"],
        ["labels.a!=1"],
        ['labels."b.c"==2'],
        ["labels.b.c"],
        ["image~=library/.*:1$"],
        ['image=="docker.io/library/x:1"'],
        [f"runtime.name=={RUNC}"],
        ["runtime==x"],
        ["snapshotter=="],
        ["nothing==x"],
        [""],
        ["id==", "id==one"],
        ["id=one"],
        ["=="],
        ["id=="],
        ["id==one,"],
        ["id~=("],
        ['id=="one'],
        ["labels."],
        [r'id~="^\\pL{1,20}$"'],
        [r"id~=\C"],
        [r'id~="^\\C"'],
        [r'id~="\\Qone\\E|\\C"'],
    ):
        await r.containers.list(filters=expressions)
        await r.containers.list_stream(filters=expressions)


@scenario()
async def namespaces_are_apart(r: Recorder) -> None:
    await r.containers.create(container=container())
    async with r.within(f"{r.namespace}-other") as other:
        await other.containers.get(id="one")
        await other.containers.list()
        await other.containers.create(container=container(labels={"other": "1"}))
        await other.containers.list()
        await r.containers.delete(id="one")
        await other.containers.get(id="one")
        await other.containers.delete(id="one")
        await r.namespaces.delete(name=other.namespace)


@scenario()
async def no_namespace(r: Recorder) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        for each in (none, bad):
            await each.containers.get(id="one")
            await each.containers.list()
            await each.containers.list_stream()
            await each.containers.create(container=container())
            await each.containers.create(container=container("a/b"))
            await each.containers.update(container=container())
            await each.containers.delete(id="one")


@scenario()
async def create_at_once(r: Recorder) -> None:
    """Only one of many may have the id."""
    await r.all(*(r.containers.create(container=container()) for _ in range(10)))


@scenario()
async def many(r: Recorder) -> None:
    for number in range(25):
        await r.containers.create(container=container(f"c{number}", labels={"n": str(number % 5)}))
    await r.containers.list(filters=["labels.n==3"])
    await r.containers.list_stream(filters=["labels.n==3"])
