from __future__ import annotations

import anyio
import pytest

from taskd.errors import InvalidArgument, ResourceExhausted
from taskd.events import Bus, Envelope, bus, validate_topic
from taskd.proto.containerd.events import TaskCreate, TaskExit
from taskd.types import TypedValue
from taskd.wellknown import pack

EVENT = TypedValue("a.Type", b"data")


def everything(_: Envelope) -> bool:
    return True


async def test_order_is_kept_and_filters_hold() -> None:
    exchange = Bus()
    async with (
        exchange.subscribe(everything) as all_of_it,
        exchange.subscribe(lambda envelope: envelope.topic == "/b") as some,
    ):
        for topic in ("/a", "/b", "/c"):
            await exchange.publish("ns", topic, EVENT)
        seen = list(await all_of_it.next_batch())
        assert [envelope.topic for envelope in seen] == ["/a", "/b", "/c"]
        assert seen[0].timestamp <= seen[1].timestamp <= seen[2].timestamp
        assert {(envelope.namespace, envelope.event) for envelope in seen} == {("ns", EVENT)}
        assert [envelope.topic for envelope in await some.next_batch()] == ["/b"]


async def test_a_forwarded_event_stays_as_it_is() -> None:
    exchange = Bus()
    envelope = Envelope(123, "ns", "/a/b", EVENT)
    async with exchange.subscribe(everything) as subscription:
        await exchange.forward(envelope)
        assert list(await subscription.next_batch()) == [envelope]


async def test_a_subscriber_waits_for_the_next_event() -> None:
    exchange = Bus()
    seen: list[str] = []

    async def follow() -> None:
        async with exchange.subscribe(everything) as subscription:
            while len(seen) < 3:
                seen.extend(envelope.topic for envelope in await subscription.next_batch())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            for topic in ("/a", "/b", "/c"):
                await anyio.sleep(0.01)
                await exchange.publish("ns", topic, EVENT)
    assert seen == ["/a", "/b", "/c"]


async def test_a_slow_subscriber_is_dropped_with_an_error_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus, "BACKLOG", 10)
    exchange = Bus()
    async with exchange.subscribe(everything) as slow, exchange.subscribe(everything) as quick:
        for number in range(12):
            await exchange.publish("ns", "/a", TypedValue("t", bytes([number])))
            assert len(list(await quick.next_batch())) == 1
        kept = list(await slow.next_batch())
        assert [envelope.event for envelope in kept] == [
            TypedValue("t", bytes([number])) for number in range(10)
        ]
        with pytest.raises(ResourceExhausted, match="fell 10 events behind"):
            await slow.next_batch()


async def test_who_comes_back_hears_what_has_become_of_older_tasks() -> None:
    exchange = Bus()
    await exchange.publish("ns", "/containers/create", EVENT)
    await exchange.publish("ns", "/tasks/create", pack(TaskCreate(container_id="new")))
    await exchange.publish("ns", "/tasks/exit", pack(TaskExit(container_id="new")))
    old = pack(TaskExit(container_id="old"))
    await exchange.publish("ns", "/tasks/exit", old)
    await exchange.publish("other", "/tasks/exit", pack(TaskExit(container_id="new")))
    async with (
        exchange.subscribe(everything) as all_of_it,
        exchange.subscribe(lambda envelope: envelope.namespace == "ns") as some,
    ):
        await exchange.publish("ns", "/tasks/oom", EVENT)
        seen = [(each.namespace, each.topic) for each in await all_of_it.next_batch()]
        assert seen == [("ns", "/tasks/exit"), ("other", "/tasks/exit"), ("ns", "/tasks/oom")]
        assert [each.event for each in await some.next_batch()] == [old, EVENT]
    exchange.forget()
    await exchange.publish("ns", "/tasks/exit", old)
    async with exchange.subscribe(everything) as late:
        await exchange.publish("ns", "/a", EVENT)
        assert [each.topic for each in await late.next_batch()] == ["/a"]


async def test_one_who_has_left_gets_nothing() -> None:
    exchange = Bus()
    async with exchange.subscribe(everything):
        pass
    assert not exchange._subscriptions


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", 'envelope topic "": must not be empty'),
        ("a", "must start with '/'"),
        ("/", "must have at least one component"),
        ("/a//b", 'failed validation on component ""'),
        ("/a/b!", 'identifier "b!" must match'),
    ],
)
async def test_bad_topics(topic: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Bus().publish("ns", topic, EVENT)
    assert words in caught.value.message
    assert caught.value.message.endswith(": invalid argument")


async def test_a_bad_namespace_is_not_forwarded() -> None:
    with pytest.raises(InvalidArgument, match="event envelope has invalid namespace"):
        await Bus().forward(Envelope(1, "a/b", "/a", EVENT))


def test_topics_of_containerd_are_good() -> None:
    for topic in ("/tasks/exec-started", "/containers/create", "/images/update"):
        validate_topic(topic)
