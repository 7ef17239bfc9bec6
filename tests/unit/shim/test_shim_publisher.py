"""Events on their way to a daemon that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from taskd import ttrpc
from taskd.codec import decode
from taskd.errors import InvalidArgument, TaskdError, Unavailable
from taskd.proto.containerd import events
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.shim import publisher as module
from taskd.shim.publisher import Publisher
from taskd.wellknown import from_any, unpack


class Daemon:
    """What it has been told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.envelopes: list[object] = []
        self.refuse = ""
        """The event that it does not take."""
        self.refusal: TaskdError = InvalidArgument("not this one")
        self.late = 0
        """Calls that it does not answer in time."""
        self.die_after = -1
        """Events that it takes before it dies without an answer to the last."""
        self.server: ttrpc.Server | None = None

    async def forward(self, context: ttrpc.CallContext, request: bytes) -> bytes:
        envelope = decode(ForwardRequest, request).envelope
        assert envelope is not None
        packed = from_any(envelope.event)
        assert packed is not None
        event = unpack(packed)
        name = event.container_id  # type: ignore[union-attr]
        if self.late:
            self.late -= 1
            await asyncio.sleep(60)
        if name == self.refuse:
            raise self.refusal
        self.told.append(name)
        self.envelopes.append(envelope)
        if len(self.told) == self.die_after:
            await asyncio.sleep(60)
        return b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.path.unlink(missing_ok=True)
        service = ttrpc.Service(
            "containerd.services.events.ttrpc.v1.Events", {"Forward": self.forward}
        )
        async with ttrpc.Server([service]) as server:
            await server.start(str(self.path))
            yield
        self.path.unlink(missing_ok=True)


@pytest.fixture
def daemon(folder: Path) -> Daemon:
    return Daemon(folder / "events.sock")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.01, 0.02))


@pytest.fixture
async def publisher(daemon: Daemon) -> AsyncIterator[Publisher]:
    publisher = Publisher(str(daemon.path), "testing")
    running = asyncio.create_task(publisher.run())
    yield publisher
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await publisher.aclose()


def publish(publisher: Publisher, *names: object) -> None:
    for name in names:
        publisher.publish(events.TaskStart(container_id=str(name)))


async def test_what_is_sent(daemon: Daemon, publisher: Publisher) -> None:
    async with daemon.serving():
        publisher.publish(events.TaskExit(container_id="one", id="one", exit_status=3))
        await publisher.drained(5)
    (envelope,) = daemon.envelopes
    assert envelope.namespace == "testing"  # type: ignore[attr-defined]
    assert envelope.topic == "/tasks/exit"  # type: ignore[attr-defined]
    assert envelope.event.type_url == "containerd.events.TaskExit"  # type: ignore[attr-defined]


async def test_order(daemon: Daemon, publisher: Publisher) -> None:
    async with daemon.serving():
        publish(publisher, *range(200))
        await publisher.drained(5)
    assert daemon.told == [str(number) for number in range(200)]


async def test_a_daemon_that_is_not_there_yet(daemon: Daemon, publisher: Publisher) -> None:
    publish(publisher, 1, 2)
    await asyncio.sleep(0.1)
    async with daemon.serving():
        publish(publisher, 3)
        await publisher.drained(5)
        assert daemon.told == ["1", "2", "3"]


async def test_a_daemon_that_comes_and_goes(daemon: Daemon, publisher: Publisher) -> None:
    for time in range(4):
        async with daemon.serving():
            publish(publisher, f"{time} a")
            await publisher.drained(5)
        publish(publisher, f"{time} b")
        await asyncio.sleep(0.05)
    assert daemon.told == ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b", "3 a"]
    async with daemon.serving():
        await publisher.drained(5)
    assert daemon.told[-1] == "3 b"


async def test_a_daemon_that_dies_before_it_answers(daemon: Daemon, publisher: Publisher) -> None:
    daemon.die_after = 2
    async with daemon.serving():
        publish(publisher, 1, 2, 3)
        async with asyncio.timeout(5):
            while len(daemon.told) < 2:
                await asyncio.sleep(0.01)
    async with daemon.serving():
        await publisher.drained(5)
    # It cannot be known whether the second one arrived; the daemon takes it once.
    assert daemon.told == ["1", "2", "2", "3"]


async def test_an_event_that_is_refused_for_good(
    daemon: Daemon, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.refuse = "2"
    async with daemon.serving():
        publish(publisher, 1, 2, 3)
        await publisher.drained(5)
    assert daemon.told == ["1", "3"]
    assert "the daemon refuses an event, which is lost" in caplog.text


async def test_a_daemon_that_is_not_ready(daemon: Daemon, publisher: Publisher) -> None:
    """It takes what it could not take while it began, or ended."""
    daemon.refuse, daemon.refusal = "1", Unavailable("shutting down")
    publish(publisher, 1, 2)
    async with daemon.serving():
        await asyncio.sleep(0.3)
        assert daemon.told == []
        daemon.refuse = ""
        await publisher.drained(5)
    assert daemon.told == ["1", "2"]


async def test_a_daemon_that_was_away_and_is_slow(
    daemon: Daemon, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be away, or late, is not to refuse."""
    monkeypatch.setattr(module, "_CALL_SECONDS", 0.1)
    publish(publisher, 1, 2)
    await asyncio.sleep(0.3)
    daemon.late = 8
    async with daemon.serving():
        await publisher.drained(5)
    assert daemon.told == ["1", "2"]


async def test_a_daemon_that_was_away_refuses_an_event_as_often_as_another(
    daemon: Daemon, publisher: Publisher
) -> None:
    daemon.refuse = "1"
    publish(publisher, 1, 2)
    await asyncio.sleep(0.3)
    asked = 0

    async def once(context: ttrpc.CallContext, request: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 2:
            daemon.refuse = ""
        return await forward(context, request)

    forward, daemon.forward = daemon.forward, once  # type: ignore[method-assign]
    async with daemon.serving():
        await publisher.drained(5)
    assert daemon.told == ["1", "2"]


async def test_a_daemon_that_is_away_for_too_long(
    daemon: Daemon,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "QUEUE", 3)
    publish(publisher, 1, 2, 3, 4, 5)
    assert caplog.text.count("the oldest event is lost") == 2
    async with daemon.serving():
        await publisher.drained(5)
    assert daemon.told == ["3", "4", "5"]


async def test_the_end_does_not_wait_for_ever(
    daemon: Daemon, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    publish(publisher, 1, 2)
    await publisher.drained(0.05)
    assert "2 events are lost: no daemon took them" in caplog.text
