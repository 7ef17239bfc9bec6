"""The namespaces service."""

from __future__ import annotations

from parity.recorder import Recorder
from parity.scenarios import scenario

from taskd.proto.containerd.services.namespaces.v1 import Namespace
from taskd.proto.google.protobuf import FieldMask

LONG = "x" * 4096


def named(r: Recorder, **labels: str) -> Namespace:
    return Namespace(name=r.namespace, labels=labels)


async def update(r: Recorder, changed: Namespace | None, *paths: str) -> None:
    mask = FieldMask(paths=list(paths)) if paths else None
    await r.namespaces.update(namespace=changed, update_mask=mask)


@scenario()
async def lifecycle(r: Recorder) -> None:
    await r.namespaces.get(name=r.namespace)
    await r.namespaces.create(namespace=named(r, a="1"))
    await r.namespaces.create(namespace=named(r, a="2"))
    await r.namespaces.get(name=r.namespace)
    await r.namespaces.delete(name=r.namespace)
    await r.namespaces.delete(name=r.namespace)


@scenario(alone=True)
async def listed(r: Recorder) -> None:
    await r.namespaces.list()
    await r.namespaces.create(namespace=named(r))
    await r.namespaces.create(namespace=Namespace(name="other", labels={"b": "2"}))
    await r.namespaces.list()
    await r.namespaces.list(filter="name==other")
    await r.namespaces.list(filter="bad==")


@scenario()
async def names(r: Recorder) -> None:
    for name in ("", "a b", "a/b", "..", "a..b", "x" * 77, "-a"):
        await r.namespaces.create(namespace=Namespace(name=name))
        await r.namespaces.get(name=name)
        await r.namespaces.delete(name=name)


@scenario()
async def update_of_bad_names(r: Recorder) -> None:
    for name in ("", "a b", "a/b", "..", "x" * 77):
        await update(r, Namespace(name=name, labels={"a": "1"}))


@scenario(alone=True)
async def create_nothing(r: Recorder) -> None:
    await r.namespaces.create()


@scenario(alone=True)
async def update_nothing(r: Recorder) -> None:
    await r.namespaces.update()


@scenario()
async def labels(r: Recorder) -> None:
    await r.namespaces.create(namespace=named(r, a=LONG))
    await r.namespaces.create(namespace=named(r, a="1", b="2", empty=""))
    await r.namespaces.get(name=r.namespace)
    await update(r, named(r, a="9", c="3"), "labels.a")
    await update(r, named(r, a="9", c="3"), "labels.c", "labels.b")
    await r.namespaces.get(name=r.namespace)
    await update(r, named(r, d="4"), "labels")
    await r.namespaces.get(name=r.namespace)
    await update(r, named(r, e="5"))
    await update(r, named(r), "labels.e")
    await update(r, named(r), "name")
    await update(r, named(r), "nothing")
    await update(r, named(r, x=LONG), "labels.x")
    await r.namespaces.get(name=r.namespace)


@scenario()
async def update_of_none(r: Recorder) -> None:
    await update(r, named(r, a="1"))
    await r.namespaces.get(name=r.namespace)
    await update(r, named(r, a="2"), "labels.a")


@scenario()
async def made_by_a_container(r: Recorder) -> None:
    await r.container()
    await r.namespaces.get(name=r.namespace)
    await r.namespaces.create(namespace=named(r))
    await r.namespaces.delete(name=r.namespace)
    await r.containers.delete(id="one")
    await r.namespaces.get(name=r.namespace)
    await r.namespaces.delete(name=r.namespace)
    await r.namespaces.get(name=r.namespace)


@scenario()
async def with_a_lease(r: Recorder) -> None:
    await r.leases.create(id="l")
    await r.namespaces.delete(name=r.namespace)
    await r.leases.delete(id="l")
    await r.namespaces.delete(name=r.namespace)


@scenario()
async def with_a_task(r: Recorder) -> None:
    await r.created()
    await r.namespaces.delete(name=r.namespace)
    await r.containers.delete(id="one")
    await r.namespaces.delete(name=r.namespace)


@scenario()
async def no_namespace_is_needed(r: Recorder) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        for each in (none, bad):
            await each.namespaces.get(name=r.namespace)
            await each.namespaces.create(namespace=named(r))
            await update(each, named(r, a="1"))
            await each.namespaces.delete(name=r.namespace)
