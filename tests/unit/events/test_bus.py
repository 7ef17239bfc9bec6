from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from taskd.errors import InvalidArgument, ResourceExhausted
from taskd.events import Bus, Entry, Envelope, Journal, Retention, bus, validate_topic
from taskd.proto.containerd.events import TaskCreate, TaskExit
from taskd.types import TypedValue
from taskd.wellknown import pack

EVENT = TypedValue("a.Type", b"data")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "events.db") as opened:
        yield opened


async def test_order_is_kept_and_filters_hold(journal: Journal) -> None:
    exchange = Bus(journal)
    async with (
        exchange.subscribe([]) as all_of_it,
        exchange.subscribe(['topic=="/b"']) as some,
    ):
        for topic in ("/a", "/b", "/c"):
            await exchange.publish("ns", topic, EVENT)
        seen = [entry.envelope for entry in await all_of_it.next_batch()]
        assert [envelope.topic for envelope in seen] == ["/a", "/b", "/c"]
        assert seen[0].timestamp <= seen[1].timestamp <= seen[2].timestamp
        assert {(envelope.namespace, envelope.event) for envelope in seen} == {("ns", EVENT)}
        assert [entry.envelope.topic for entry in await some.next_batch()] == ["/b"]


async def test_a_forwarded_event_stays_as_it_is(journal: Journal) -> None:
    exchange = Bus(journal)
    envelope = Envelope(123, "ns", "/a/b", EVENT)
    async with exchange.subscribe([]) as subscription:
        await exchange.forward(envelope)
        assert [entry.envelope for entry in await subscription.next_batch()] == [envelope]


async def test_a_subscriber_waits_for_the_next_event(journal: Journal) -> None:
    exchange = Bus(journal)
    seen: list[str] = []

    async def follow() -> None:
        async with exchange.subscribe([]) as subscription:
            while len(seen) < 3:
                batch = await subscription.next_batch()
                seen.extend(entry.envelope.topic for entry in batch)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            for topic in ("/a", "/b", "/c"):
                await anyio.sleep(0.01)
                await exchange.publish("ns", topic, EVENT)
    assert seen == ["/a", "/b", "/c"]


async def test_a_slow_subscriber_misses_nothing_and_delays_nobody(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "RECENT", 10)
    monkeypatch.setattr(bus, "_PAGE", 3)
    exchange = Bus(journal)
    only = ['topic=="/a"']
    async with exchange.subscribe(only) as slow, exchange.subscribe(only) as quick:
        for number in range(57):
            await exchange.publish("ns", "/b", EVENT)
            await exchange.publish("ns", "/a", TypedValue("t", bytes([number])))
            assert len(await quick.next_batch()) == 1
        seen: list[Entry] = []
        while len(seen) < 57:
            seen += await slow.next_batch()
        assert [entry.envelope.event for entry in seen] == [
            TypedValue("t", bytes([number])) for number in range(57)
        ]
        assert len(exchange._feeds.get(tuple(only)).recent) < 20


async def test_a_subscriber_that_retention_has_overtaken_is_told_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "RECENT", 10)
    with Journal(tmp_path / "events.db", retention=Retention(max_age=0)) as journal:
        exchange = Bus(journal)
        async with exchange.subscribe([]) as slow, exchange.subscribe([]) as other:
            for _ in range(57):
                await exchange.publish("ns", "/a", EVENT)
                await other.next_batch()
            await journal.tidy()
            with pytest.raises(ResourceExhausted, match="go on after position 56"):
                await slow.next_batch()
            await exchange.publish("ns", "/a", EVENT)
            assert [entry.position for entry in await other.next_batch()] == [58]
        async with exchange.subscribe([], after=56) as again:
            assert [entry.position for entry in await again.next_batch()] == [57, 58]


async def test_a_subscriber_can_begin_in_the_past(journal: Journal) -> None:
    exchange = Bus(journal)
    for topic in ("/a", "/b", "/a"):
        await exchange.publish("ns", topic, EVENT)
    async with exchange.subscribe(['topic=="/a"'], after=1) as subscription:
        assert [entry.position for entry in await subscription.next_batch()] == [3]
        await exchange.publish("ns", "/a", EVENT)
        assert [entry.position for entry in await subscription.next_batch()] == [4]


async def test_who_comes_back_hears_what_has_become_of_older_tasks(journal: Journal) -> None:
    exchange = Bus(journal)
    await exchange.publish("ns", "/containers/create", EVENT)
    await exchange.publish("ns", "/tasks/create", pack(TaskCreate(container_id="new")))
    await exchange.publish("ns", "/tasks/exit", pack(TaskExit(container_id="new")))
    old = pack(TaskExit(container_id="old"))
    await exchange.publish("ns", "/tasks/exit", old)
    await exchange.publish("other", "/tasks/exit", pack(TaskExit(container_id="new")))
    async with (
        exchange.subscribe([]) as all_of_it,
        exchange.subscribe(["namespace==ns"]) as some,
    ):
        await exchange.publish("ns", "/tasks/oom", EVENT)
        batch = [*await all_of_it.next_batch(), *await all_of_it.next_batch()]
        seen = [(each.envelope.namespace, each.envelope.topic) for each in batch]
        assert seen == [("ns", "/tasks/exit"), ("other", "/tasks/exit"), ("ns", "/tasks/oom")]
        batch = [*await some.next_batch(), *await some.next_batch()]
        assert [each.envelope.event for each in batch] == [old, EVENT]
    exchange.forget()
    await exchange.publish("ns", "/tasks/exit", old)
    async with exchange.subscribe([]) as late:
        await exchange.publish("ns", "/a", EVENT)
        assert [each.envelope.topic for each in await late.next_batch()] == ["/a"]


async def test_one_who_has_left_gets_nothing(journal: Journal) -> None:
    exchange = Bus(journal)
    async with exchange.subscribe([]):
        pass
    assert not exchange._feeds


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
async def test_bad_topics(topic: str, words: str, journal: Journal) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Bus(journal).publish("ns", topic, EVENT)
    assert words in caught.value.message
    assert caught.value.message.endswith(": invalid argument")


async def test_a_bad_namespace_is_not_forwarded(journal: Journal) -> None:
    with pytest.raises(InvalidArgument, match="event envelope has invalid namespace"):
        await Bus(journal).forward(Envelope(1, "a/b", "/a", EVENT))


def test_topics_of_containerd_are_good() -> None:
    for topic in ("/tasks/exec-started", "/containers/create", "/images/update"):
        validate_topic(topic)
