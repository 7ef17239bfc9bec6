from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from taskd import ttrpc
from taskd.codec import encode
from taskd.errors import NotFound
from taskd.observe.recorder import Listener, Recorder
from taskd.proto.containerd.events import TaskExit
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.containerd.services.tasks.v1 import GetRequest, GetResponse
from taskd.proto.containerd.types import Envelope
from taskd.proto.taskd.v1 import FollowResponse, Payload, Way
from taskd.runtime.bundle import Bundle
from taskd.wellknown import pack, to_any

METHOD = "/containerd.services.tasks.v1.Tasks/Get"
BUNDLE = Bundle("ns", "one", Path("/bundle"))


class Connection:
    """Answers with what it was asked, or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[dict[str, Any]] = []

    async def call(self, service: str, method: str, payload: bytes, **options: Any) -> bytes:
        self.calls.append(options)
        if self.error:
            raise self.error
        return payload[::-1]

    async def wait_closed(self) -> None: ...

    async def aclose(self) -> None: ...


class Stream:
    def __init__(self, *messages: object) -> None:
        self.metadata = {"containerd-namespace": "ns"}
        self.messages = list(messages)
        self.sent: list[object] = []

    async def recv_message(self) -> object:
        return self.messages.pop(0) if self.messages else None

    async def send_message(self, message: object) -> None:
        self.sent.append(message)


async def heard(listener: Listener, count: int) -> list[FollowResponse]:
    return [await asyncio.wait_for(listener.hear(), 5) for _ in range(count)]


async def test_while_nobody_listens_nothing_is_done() -> None:
    recorder = Recorder()

    async def handler(stream: object) -> None: ...

    def plain(stream: object) -> Any:
        return stream

    incoming = recorder.incoming(METHOD, Cardinality.UNARY_UNARY, plain)
    assert incoming("the stream") == "the stream"
    found = recorder.outgoing(Connection(), BUNDLE).call("S", "M", b"ab")
    assert found.cr_code is Connection.call.__code__
    assert await found == b"ba"


async def test_a_call_to_a_shim() -> None:
    recorder, listener = Recorder(), Listener()
    connection = Connection()
    with recorder.listening(listener):
        watched = recorder.outgoing(connection, BUNDLE)
        sent = {"timeout": 3.0, "metadata": {"a": ["b"]}}
        assert await watched.call("containerd.task.v2.Task", "State", b"ab", **sent) == b"ba"
    assert connection.calls == [sent]
    begun, ended = await heard(listener, 2)
    assert (begun.call, begun.way, begun.namespace, begun.task, begun.method) == (
        *(ended.call, Way.TO_SHIM, "ns", "one", "/containerd.task.v2.Task/State"),
    )
    assert (begun.request, begun.nanoseconds) == (Payload(data=b"ab", size=2, messages=1), None)
    assert ended.answer == Payload(data=b"ba", size=2, messages=1)
    assert ended.nanoseconds is not None
    assert ended.nanoseconds >= 0


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFound("task one"), 5, "task one: not found"),
        (GRPCError(Status.UNAVAILABLE, "gone"), 14, "gone"),
        (ttrpc.ConnectionClosed(), None, None),
        (asyncio.CancelledError(), 1, ""),
        (ValueError("odd"), 2, "ValueError('odd')"),
    ],
)
async def test_a_call_that_fails(error: BaseException, code: int | None, words: str | None) -> None:
    recorder, listener = Recorder(), Listener()
    with recorder.listening(listener), pytest.raises(type(error)):
        await recorder.outgoing(Connection(error), BUNDLE).call("S", "M", b"")
    _, ended = await heard(listener, 2)
    assert ended.code == (code if code is not None else error.code)  # type: ignore[attr-defined]
    if words is not None:
        assert ended.error == words


async def test_a_call_of_a_client() -> None:
    recorder, listener = Recorder(), Listener()

    async def handler(stream: Stream) -> None:
        assert stream.metadata == {"containerd-namespace": "ns"}
        assert await stream.recv_message() == GetRequest(container_id="one")
        await stream.send_message(GetResponse())

    serve = recorder.incoming(METHOD, Cardinality.UNARY_UNARY, handler)
    stream = Stream(GetRequest(container_id="one"))
    with recorder.listening(listener):
        await serve(stream)
    assert stream.sent == [GetResponse()]
    begun, ended = await heard(listener, 2)
    assert (begun.way, begun.namespace, begun.task) == (Way.CLIENT, "ns", "one")
    assert begun.request is not None
    assert begun.request.data == encode(GetRequest(container_id="one"))
    assert ended.answer is not None


async def test_of_a_stream_the_first_request_and_the_last_answer_are_told() -> None:
    recorder, listener = Recorder(), Listener()

    async def handler(stream: Any) -> None:
        async for message in stream:
            await stream.send_message(message)

    serve = recorder.incoming(METHOD, Cardinality.STREAM_STREAM, handler)
    with recorder.listening(listener):
        await serve(Stream(*(GetRequest(container_id=str(number)) for number in range(5))))
    begun, ended = await heard(listener, 2)
    assert begun.request is not None
    assert begun.request.data == encode(GetRequest(container_id="0"))
    assert ended.request is not None
    assert (ended.request.data, ended.request.messages) == (b"", 5)
    assert ended.answer is not None
    assert (ended.answer.data, ended.answer.messages) == (
        encode(GetRequest(container_id="4")),
        5,
    )


async def test_an_event_of_a_shim_is_about_its_task() -> None:
    recorder = Recorder()
    ours, others = Listener(task="one"), Listener(task="two")

    async def forward(_: ttrpc.CallContext, payload: bytes) -> bytes:
        return b""

    service = recorder.served(ttrpc.Service("a.Events", {"Forward": forward}))
    event = to_any(pack(TaskExit(container_id="one")))
    payload = encode(ForwardRequest(envelope=Envelope(namespace="ns", event=event)))
    handler: Any = service.methods["Forward"]
    with recorder.listening(ours), recorder.listening(others):
        assert await handler(None, payload) == b""
        assert await handler(None, b"\xff") == b""
    assert [each.task for each in await heard(ours, 2)] == ["one", "one"]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(others.hear(), 0.05)


async def test_a_slow_listener_loses_some_and_is_told_how_many() -> None:
    recorder, slow = Recorder(), Listener(limit=3)
    with recorder.listening(slow):
        watched = recorder.outgoing(Connection(), BUNDLE)
        for _ in range(700):
            await watched.call("S", "M", b"123456789")
        found = await heard(slow, 1024)
        await watched.call("S", "M", b"")
        [after] = await heard(slow, 1)
    assert {each.lost for each in found} == {0}
    assert after.lost == 2 * 700 - 1024
    first = found[0].request
    assert first is not None
    assert (first.data, first.size) == (b"123", 9)


async def test_tracing_is_not_traced() -> None:
    async def follow(stream: object) -> None: ...

    method = "/taskd.v1.Trace/Follow"
    assert Recorder().incoming(method, Cardinality.UNARY_STREAM, follow) is follow


async def test_what_a_listener_ignores() -> None:
    """It is not told that, and what nobody wants costs nothing."""
    recorder = Recorder()
    deaf, listener = Listener(ignored=["/S/Stats"]), Listener()
    connection = recorder.outgoing(Connection(), BUNDLE)
    with recorder.listening(deaf):
        assert (call := connection.call("S", "Stats", b"ab")).cr_code is Connection.call.__code__
        assert await call == b"ba"
        with recorder.listening(listener):
            await connection.call("S", "Stats", b"ab")
            await connection.call("S", "State", b"ab")
    assert [each.method for each in await heard(deaf, 2)] == ["/S/State"] * 2
    assert [each.method for each in await heard(listener, 4)] == ["/S/Stats"] * 2 + ["/S/State"] * 2
