"""Garbage collection: what keeps content, and what a synchronous deletion leaves."""

from __future__ import annotations

from typing import Any

from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario
from parity.scenarios.content import COMMIT, WRITE, request, write
from parity.scenarios.images import image, target

from taskd import digests
from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.proto.containerd.services.leases.v1 import Resource

A, B, C = b"aaa", b"bbb", b"ccc"
REFERS = "containerd.io/gc.ref.content"


async def blob(r: Recorder, data: bytes, lease: str = "", **labels: Any) -> None:
    commit = request(COMMIT, data, labels=labels.get("labels", {}))
    await write(r, data.decode(), commit, lease=lease)


async def collect(r: Recorder) -> None:
    """The end of a synchronous deletion is that of a collection."""
    await r.images.create(image=image("none"))
    await r.images.delete(name="none", sync=True)
    await r.content.list()
    await r.content.list_statuses()


def of(data: bytes) -> Any:
    return target(digest=digests.of(data), size=len(data))


@scenario(alone=True)
async def of_what_nothing_refers_to(r: Recorder) -> None:
    await blob(r, A)
    await collect(r)
    await r.content.info(digest=digests.of(A))


@scenario(alone=True)
async def an_image_keeps_what_its_target_refers_to(r: Recorder) -> None:
    await r.leases.create(id="l")
    await blob(r, A, "l", labels={f"{REFERS}.0": digests.of(B), f"{REFERS}/x": digests.of(C)})
    await blob(r, B, "l", labels={REFERS: digests.of(A)})
    await blob(r, C, "l")
    await blob(r, b"ddd", "l", labels={f"{REFERS}x": digests.of(C)})
    await r.images.create(image=image("i", target=of(A)))
    await r.leases.delete(id="l", sync=True)
    await r.content.list()
    await r.images.delete(name="i", sync=True)
    await r.content.list()


@scenario(alone=True)
async def an_image_refers_by_its_labels(r: Recorder) -> None:
    await r.leases.create(id="l")
    await blob(r, A, "l")
    await blob(r, B, "l")
    await r.images.create(image=image("i", target=of(A), labels={f"{REFERS}.b": digests.of(B)}))
    await r.leases.delete(id="l", sync=True)
    await r.content.list()


@scenario(alone=True)
async def a_lease_keeps_what_is_written_under_it(r: Recorder) -> None:
    await r.leases.create(id="l")
    await blob(r, A, "l", labels={f"{REFERS}.0": digests.of(B)})
    await r.leases.create(id="m")
    await blob(r, B, "m")
    await r.leases.delete(id="m", sync=True)
    await r.content.list()
    await r.leases.delete(id="l", sync=True)
    await r.content.list()


@scenario(alone=True)
async def a_flat_lease_keeps_no_more_than_it_names(r: Recorder) -> None:
    await r.leases.create(id="l", labels={"containerd.io/gc.flat": "1"})
    await blob(r, A, "l", labels={f"{REFERS}.0": digests.of(B)})
    await blob(r, B)
    await collect(r)


@scenario(alone=True)
async def a_lease_is_given_content_later(r: Recorder) -> None:
    await r.leases.create(id="l")
    await r.leases.create(id="m")
    await blob(r, A, "m")
    resource = Resource(id=digests.of(A), type="content")
    await r.leases.add_resource(id="l", resource=resource)
    await r.leases.delete(id="m", sync=True)
    await r.content.list()
    await r.leases.delete_resource(id="l", resource=resource)
    await collect(r)


@scenario(alone=True)
async def a_lease_expires(r: Recorder) -> None:
    await r.leases.create(id="l", labels={"containerd.io/gc.expire": "2000-01-01T00:00:00Z"})
    await r.leases.create(id="m", labels={"containerd.io/gc.expire": "3000-01-01T00:00:00Z"})
    await r.leases.create(id="n", labels={"containerd.io/gc.expire": "some day"})
    for lease, data in (("l", A), ("m", B), ("n", C)):
        await blob(r, data, lease)
    await collect(r)
    await r.leases.list()


@scenario(alone=True)
async def content_is_its_own_root(r: Recorder) -> None:
    root = {"containerd.io/gc.root": "2020-01-01T00:00:00Z", f"{REFERS}.0": digests.of(B)}
    await r.leases.create(id="l")
    await blob(r, A, "l", labels=root)
    await blob(r, B, "l")
    await r.leases.delete(id="l", sync=True)
    await r.content.list()
    await r.content.delete(digest=digests.of(A))
    await collect(r)


@scenario(alone=True)
async def a_container_refers_by_its_labels(r: Recorder) -> None:
    await r.leases.create(id="l")
    await blob(r, A, "l")
    labels = {f"{REFERS}.a": digests.of(A)}
    runtime = ContainerRuntime(name=RUNC)
    container = Container(id="two", runtime=runtime, spec=r.spec("two"), labels=labels)
    await r.containers.create(container=container)
    await r.leases.delete(id="l", sync=True)
    await r.content.list()
    await r.containers.delete(id="two")
    await collect(r)


@scenario(alone=True)
async def unfinished_writes_stay_for_a_day(r: Recorder) -> None:
    await r.leases.create(id="l")
    await write(r, "free", request(WRITE, A))
    await write(r, "held", request(WRITE, B), lease="l")
    await collect(r)
    await r.leases.delete(id="l", sync=True)
    await r.content.list_statuses()


@scenario(alone=True)
async def namespaces_are_apart(r: Recorder) -> None:
    async with r.within(f"{r.namespace}-other") as other:
        await other.leases.create(id="l")
        await blob(other, A, "l")
        await blob(r, A)
        await collect(r)
        await other.content.list()
        await other.leases.delete(id="l", sync=True)
        await other.content.list()
