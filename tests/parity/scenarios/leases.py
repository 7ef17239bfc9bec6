"""The leases service."""

from __future__ import annotations

from parity.recorder import Recorder
from parity.scenarios import scenario

from taskd.proto.containerd.services.leases.v1 import CreateRequest, LeasesStub, Resource

DIGEST = "sha256:" + "3" * 64


@scenario()
async def lifecycle(r: Recorder) -> None:
    await r.leases.create(id="l", labels={"a": "1"})
    await r.leases.create(id="l")
    await r.leases.list()
    await r.leases.delete(id="l")
    await r.leases.delete(id="l")
    await r.leases.list()


@scenario()
async def a_generated_id(r: Recorder) -> None:
    request = CreateRequest(labels={"a": "1"})
    lease = (await r.stub(LeasesStub).create(request)).lease
    assert lease is not None
    r.note(f"an id of its own: {bool(lease.id)} {r.shown(lease).replace(lease.id, 'ID')}")
    await r.leases.list(filters=["labels.a==2"])


@scenario()
async def bad_ids(r: Recorder) -> None:
    for name in ("a b", "a/b", "..", "x" * 100):
        await r.leases.create(id=name)
        await r.leases.list_resources(id=name)
        await r.leases.delete(id=name)
    await r.leases.delete(id="")
    await r.leases.list()


@scenario()
async def labels(r: Recorder) -> None:
    await r.leases.create(id="one", labels={"a": "1", "containerd.io/gc.flat": "x", "empty": ""})
    await r.leases.create(id="two", labels={"a": "x" * 4096})
    await r.leases.create(id="three", labels={"": "x"})
    expire = {"containerd.io/gc.expire": "2100-01-01T00:00:00Z"}
    await r.leases.create(id="four", labels=expire)
    await r.leases.list()
    for filters in (
        ["id==one"],
        ["labels.a"],
        ['labels."containerd.io/gc.flat"==x'],
        ["id==one", "id==four"],
        ["nothing"],
        ["id=="],
        ["id==("],
        ["created_at"],
    ):
        await r.leases.list(filters=filters)


@scenario()
async def resources(r: Recorder) -> None:
    await r.leases.list_resources(id="l")
    content = Resource(id=DIGEST, type="content")
    await r.leases.add_resource(id="l", resource=content)
    await r.leases.delete_resource(id="l", resource=content)
    await r.leases.create(id="l")
    for resource in (
        content,
        content,
        Resource(id="i", type="ingests"),
        Resource(id="key", type="snapshots/native"),
        Resource(id="key", type="snapshots/overlayfs"),
        Resource(id="key", type="snapshots"),
        Resource(id="key", type="snapshots/"),
        Resource(id="a/b", type="ingests"),
        Resource(id="", type="content"),
        Resource(id="bad", type="content"),
        Resource(id="x", type="images"),
        Resource(id="x", type=""),
        Resource(id="x", type="content/x"),
    ):
        await r.leases.add_resource(id="l", resource=resource)
        await r.leases.list_resources(id="l")
    for resource in (
        content,
        content,
        Resource(id="key", type="snapshots/native"),
        Resource(id="none", type="ingests"),
        Resource(id="x", type="images"),
        Resource(id="bad", type="content"),
    ):
        await r.leases.delete_resource(id="l", resource=resource)
    await r.leases.list_resources(id="l")
    await r.leases.delete(id="l")
    await r.leases.list_resources(id="l")


@scenario(alone=True)
async def add_nothing(r: Recorder) -> None:
    await r.leases.create(id="l")
    await r.leases.add_resource(id="l")


@scenario(alone=True)
async def delete_nothing(r: Recorder) -> None:
    await r.leases.create(id="l")
    await r.leases.delete_resource(id="l")


@scenario()
async def namespaces_are_apart(r: Recorder) -> None:
    await r.leases.create(id="l")
    async with r.within(f"{r.namespace}-other") as other:
        await other.leases.list()
        await other.leases.delete(id="l")
        await other.leases.create(id="l")
        await other.leases.delete(id="l")
        await r.namespaces.delete(name=other.namespace)
    await r.leases.list()
    await r.leases.delete(id="l")


@scenario()
async def synchronous_delete(r: Recorder) -> None:
    await r.leases.create(id="l")
    await r.leases.delete(id="l", sync=True)
    await r.leases.list()
    await r.leases.delete(id="l", sync=True)


@scenario()
async def no_namespace(r: Recorder) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        for each in (none, bad):
            await each.leases.create(id="l")
            await each.leases.list()
            await each.leases.delete(id="l")
            await each.leases.list_resources(id="l")
            resource = Resource(id=DIGEST, type="content")
            await each.leases.add_resource(id="l", resource=resource)
            await each.leases.delete_resource(id="l", resource=resource)
