"""The events service: what may be published, and who gets it."""

from __future__ import annotations

from typing import Any

import anyio
from parity.recorder import Recorder
from parity.scenarios import scenario

from taskd.proto.containerd import types
from taskd.proto.containerd.events import (
    ContainerDelete,
    NamespaceCreate,
    TaskCreate,
    TaskExit,
    TaskIo,
)
from taskd.proto.containerd.services.events import v1 as events
from taskd.proto.google import protobuf
from taskd.wellknown import pack, timestamp, to_any

EVENT = to_any(pack(ContainerDelete(id="x")))


@scenario()
async def publish(r: Recorder) -> None:
    for topic in ("/a", "/a/b/c", "/a.b", "/a-b_c", "/containers/delete"):
        await r.events.publish(topic=topic, event=EVENT)


@scenario()
async def bad_topics(r: Recorder) -> None:
    for topic in ("", "/", "a", "a/b", "/a/", "//a", "/a b", "/a//b", "/é", "/" + "x" * 100):
        await r.events.publish(topic=topic, event=EVENT)


@scenario()
async def odd_events(r: Recorder) -> None:
    exited = TaskExit(container_id="c", id="e", pid=1, exit_status=2, exited_at=timestamp(0))
    for event in (
        protobuf.Any(),
        protobuf.Any(type_url="x"),
        protobuf.Any(type_url="no.such.Type", value=b"\xff"),
        to_any(pack(exited)),
    ):
        await r.events.publish(topic="/a", event=event)


@scenario(alone=True)
async def publish_nothing(r: Recorder) -> None:
    await r.events.publish(topic="/a")
    await r.events.publish()


def envelope(r: Recorder, **fields: Any) -> types.Envelope:
    defaults = {
        "namespace": r.namespace,
        "topic": "/a",
        "timestamp": timestamp(1_700_000_000 * 10**9),
        "event": EVENT,
    }
    return types.Envelope(**{**defaults, **fields})


@scenario()
async def forward(r: Recorder) -> None:
    await r.events.forward(envelope=envelope(r))
    await r.events.forward(envelope=envelope(r, namespace=""))
    await r.events.forward(envelope=envelope(r, namespace="a/b"))
    await r.events.forward(envelope=envelope(r, topic="a"))
    await r.events.forward(envelope=envelope(r, topic=""))
    await r.events.forward(envelope=envelope(r, timestamp=timestamp(-62135596800 * 10**9)))


@scenario(alone=True)
async def forward_nothing(r: Recorder) -> None:
    await r.events.forward()


@scenario(alone=True)
async def forward_without_a_time(r: Recorder) -> None:
    await r.events.forward(envelope=envelope(r, timestamp=None))


@scenario()
async def forward_for_another_namespace(r: Recorder) -> None:
    async with r.within(None) as none, r.within("other") as other:
        await none.events.forward(envelope=envelope(r))
        await other.events.forward(envelope=envelope(r, topic="/b"))


@scenario()
async def publish_without_a_namespace(r: Recorder) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        await none.events.publish(topic="/a", event=EVENT)
        await bad.events.publish(topic="/a", event=EVENT)


@scenario()
async def bad_filters(r: Recorder) -> None:
    for expressions in (["topic=="], ["=="], ["topic~=("], ["topic==/a"], ["", "x=="], ["a.b.c="]):
        message = events.SubscribeRequest(filters=expressions)
        stream = r.stub(events.EventsStub).subscribe(message)
        await r.call(f"subscribe {expressions}", anext(stream), 0.2)


FILTERS: tuple[list[str], ...] = (
    [],
    ['topic=="/a"'],
    ['topic~="^/a"'],
    ['topic!="/a"'],
    ["event.id==x"],
    ["event.container_id==c"],
    ["event.id==x", 'topic=="/b/c"'],
    ["namespace==none"],
    ['topic=="/a",event.id==x'],
    ["event.nothing"],
    ["event.id"],
    ["event.id.rest==x"],
    ["event.io"],
    ["event.io.terminal"],
    ["event.io.terminal==true"],
    ["event.io.terminal==false"],
    ["event.io.stdin==in"],
    ["event.labels.a.b==c"],
    ["event.labels.empty"],
    ["timestamp"],
    ["nothing==x"],
)


@scenario()
async def filters(r: Recorder) -> None:
    """Who gets what; `namespace` keeps other scenarios' events out."""
    seen: dict[str, list[str]] = {str(each): [] for each in FILTERS}
    heard: dict[str, set[str]] = {"begin": set(), "end": set()}

    async def subscribe(expressions: list[str]) -> None:
        name = str(expressions)
        own = f"namespace=={r.namespace}"
        narrowed = [f"{each},{own}" for each in (*expressions, 'topic~="^/parity/"')]
        message = events.SubscribeRequest(filters=narrowed if expressions else [own])
        async for event in r.stub(events.EventsStub).subscribe(message):
            marker = event.topic.removeprefix("/parity/")
            if marker == event.topic:
                seen[name].append(f"{event.topic} {r.shown(event)}")
            elif marker in heard:
                heard[marker].add(name)

    async def everybody_has_heard(marker: str) -> None:
        while len(heard[marker]) < len(seen):
            await r.publish_marker(marker, r.channel)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as group:
        for each in FILTERS:
            group.start_soon(subscribe, each)
        await everybody_has_heard("begin")
        await r.events.publish(topic="/a", event=EVENT)
        await r.events.publish(topic="/b/c", event=to_any(pack(ContainerDelete(id="y"))))
        await r.events.publish(topic="/a", event=to_any(pack(TaskExit(container_id="c", id="x"))))
        for io in (TaskIo(stdin="in", terminal=True), TaskIo(), None):
            event = to_any(pack(TaskCreate(container_id="c", io=io)))
            await r.events.publish(topic="/b/io", event=event)
        labels = NamespaceCreate("n", {"a.b": "c", "empty": ""})
        await r.events.publish(topic="/b/labels", event=to_any(pack(labels)))
        await everybody_has_heard("end")
        group.cancel_scope.cancel()
    for expressions, kept in seen.items():
        r.note(f"{expressions} {kept}")


@scenario()
async def order(r: Recorder) -> None:
    for number in range(50):
        event = to_any(pack(ContainerDelete(id=f"{number}")))
        await r.events.publish(topic="/numbered", event=event)
