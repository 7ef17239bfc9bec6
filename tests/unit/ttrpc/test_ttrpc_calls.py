"""Unary calls: a client and a server of ours, or one of them and a peer spoken by hand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest
from conftest import Wires
from ttrpc_peer import PATIENCE, call, header

from taskd.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TaskdError,
    Unimplemented,
    Unknown,
)
from taskd.ttrpc import MAX_PAYLOAD, CallContext, Client, ConnectionClosed, ProtocolError
from taskd.ttrpc.frames import encode
from taskd.ttrpc.messages import Request, Response

Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def echo(context: CallContext, payload: bytes) -> bytes:
    return payload


class Gate:
    """A handler that waits until it is opened, and notes what happens to it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.contexts: list[CallContext] = []

    async def __call__(self, context: CallContext, payload: bytes) -> bytes:
        self.contexts.append(context)
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return payload


def leftovers(client: Client) -> int:
    return len(client._calls) + len(client._streams) + len(client._connection.streams)


async def test_echo(wires: Wires) -> None:
    client, _ = await wires.both(Echo=echo)
    assert await client.call("test", "Echo", b"hello") == b"hello"
    assert await client.call("test", "Echo", b"") == b""
    assert leftovers(client) == 0


async def test_largest_message(wires: Wires) -> None:
    client, _ = await wires.both(Echo=echo)
    payload = bytes(MAX_PAYLOAD - 100)
    assert await client.call("test", "Echo", payload, timeout=PATIENCE) == payload


async def test_many_calls_at_once_are_answered_in_any_order(wires: Wires) -> None:
    waiting: dict[bytes, asyncio.Event] = {}

    async def held(context: CallContext, payload: bytes) -> bytes:
        waiting[payload] = asyncio.Event()
        await waiting[payload].wait()
        return payload

    client, _ = await wires.both(Held=held, Echo=echo)
    names = [b"%d" % number for number in range(200)]
    answered: list[bytes] = []

    async def ask(name: bytes) -> None:
        assert await client.call("test", "Held", name, timeout=PATIENCE) == name
        answered.append(name)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(ask(name))
        while len(waiting) < len(names):
            await client.call("test", "Echo", b"")
        for name in reversed(names):
            waiting[name].set()
            while len(answered) < len(names) and name not in answered:
                await asyncio.sleep(0)
    assert answered == names[::-1]
    assert leftovers(client) == 0


@pytest.mark.parametrize(
    ("service", "method", "message"),
    [("other", "Echo", "service other"), ("test", "Other", "method Other")],
)
async def test_unknown(wires: Wires, service: str, method: str, message: str) -> None:
    client, _ = await wires.both(Echo=echo)
    with pytest.raises(Unimplemented, match=message):
        await client.call(service, method, b"")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotFound("task x"), NotFound("task x")),
        (InvalidArgument("as it is", verbatim=True), InvalidArgument("as it is")),
        (KeyError("x"), Unknown("'x': unknown")),
        (ValueError(), Unknown("ValueError: unknown")),
        (TimeoutError("of its own"), Unknown("of its own: unknown")),
        (
            FileNotFoundError(2, "No such file", "\udcff"),
            Unknown("\\udcff: no such file: unknown"),
        ),
        (asyncio.CancelledError(), Cancelled()),
    ],
)
async def test_errors(
    wires: Wires, raised: BaseException, expected: TaskdError, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(context: CallContext, payload: bytes) -> bytes:
        raise raised

    client, _ = await wires.both(Fail=fail, Echo=echo)
    with pytest.raises(TaskdError) as caught:
        await client.call("test", "Fail", b"", timeout=PATIENCE)
    assert (type(caught.value), caught.value.message) == (type(expected), expected.message)
    logged = [record.getMessage() for record in caplog.records if record.name == "taskd.ttrpc"]
    assert logged == (["/test/Fail failed"] if isinstance(expected, Unknown) else [])
    assert await client.call("test", "Echo", b"still here") == b"still here"


async def test_handler_that_returns_nothing(wires: Wires) -> None:
    async def forget(context: CallContext, payload: bytes) -> bytes:
        return None  # type: ignore[return-value]

    client, _ = await wires.both(Forget=forget)
    with pytest.raises(Unknown, match="returned nothing"):
        await client.call("test", "Forget", b"")


async def test_metadata_and_deadline_reach_the_handler(wires: Wires) -> None:
    gate = Gate()
    gate.open.set()
    client, _ = await wires.both(Gate=gate)
    await client.call("test", "Gate", b"", timeout=5, metadata={"Key": ["a", "b"], "none": []})
    await client.call("test", "Gate", b"")
    first, second = gate.contexts
    assert (first.service, first.method) == ("test", "Gate")
    assert first.metadata == {"key": ("a", "b")}
    assert first.deadline is not None
    assert 4 < first.deadline - asyncio.get_running_loop().time() < 5
    assert (second.metadata, second.deadline) == ({}, None)


class TestTimeouts:
    async def test_client_keeps_the_deadline(self, wires: Wires) -> None:
        client, peer = await wires.client()
        with pytest.raises(DeadlineExceeded, match="context deadline exceeded"):
            await client.call("test", "Echo", b"", timeout=0.05)
        assert leftovers(client) == 0
        stream_id, request = await peer.request()
        assert 0 < request.timeout_nano <= 50_000_000
        # The answer comes late, and the connection goes on.
        await peer.write(encode(stream_id, 2, 0, Response(payload=b"late").encode()))
        answer = asyncio.create_task(client.call("test", "Echo", b""))
        stream_id, request = await peer.request()
        assert (stream_id, request.timeout_nano) == (3, 0)
        await peer.write(encode(stream_id, 2, 0, Response(payload=b"now").encode()))
        assert await answer == b"now"

    async def test_server_keeps_the_deadline(self, wires: Wires) -> None:
        gate = Gate()
        peer, _ = await wires.server(Gate=gate)
        start = time.monotonic()
        await peer.write(call(1, "Gate", timeout_nano=50_000_000))
        expected = Response(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
        assert await peer.response() == (1, expected)
        assert 0.05 <= time.monotonic() - start < 1
        assert gate.cancelled.is_set()

    @pytest.mark.parametrize("timeout_nano", [0, -1, -(2**63)])
    async def test_no_timeout(self, wires: Wires, timeout_nano: int) -> None:
        gate = Gate()
        gate.open.set()
        peer, _ = await wires.server(Gate=gate)
        await peer.write(call(1, "Gate", b"a", timeout_nano=timeout_nano))
        assert (await peer.response())[1].code == Code.OK
        assert gate.contexts[0].deadline is None

    @pytest.mark.parametrize("timeout", [0, -1])
    async def test_call_without_time_left_is_not_sent(self, wires: Wires, timeout: float) -> None:
        client, peer = await wires.client()
        with pytest.raises(DeadlineExceeded):
            await client.call("test", "Echo", b"", timeout=timeout)
        assert leftovers(client) == 0
        await client.aclose()
        assert await peer.is_cut_off()

    @pytest.mark.parametrize(
        ("timeout", "sent"), [(float("inf"), 0), (1e300, 2**63 - 1), (1e9, 10**18)]
    )
    async def test_very_long_timeouts(self, wires: Wires, timeout: float, sent: int) -> None:
        client, peer = await wires.client()
        answer = asyncio.create_task(client.call("test", "Echo", b"", timeout=timeout))
        stream_id, request = await peer.request()
        assert abs(request.timeout_nano - sent) < 10**9
        await peer.write(encode(stream_id, 2, 0))
        assert await answer == b""

    async def test_longest_timeout_that_can_be_sent(self, wires: Wires) -> None:
        peer, _ = await wires.server(Echo=echo)
        await peer.write(call(1, "Echo", b"a", timeout_nano=2**63 - 1))
        assert await peer.response() == (1, Response(payload=b"a"))


class TestGivingUp:
    async def test_cancelled_call_leaves_nothing(self, wires: Wires) -> None:
        gate = Gate()
        client, _ = await wires.both(Gate=gate, Echo=echo)
        doomed = asyncio.create_task(client.call("test", "Gate", b"", timeout=60))
        await gate.entered.wait()
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert leftovers(client) == 0
        gate.open.set()
        assert await client.call("test", "Echo", b"after the late answer") != b""

    async def test_cancelled_as_the_answer_comes(self, wires: Wires) -> None:
        client, peer = await wires.client()
        doomed = asyncio.create_task(client.call("test", "Echo", b""))
        stream_id, _ = await peer.request()
        client.data_received(encode(stream_id, 2, 0, Response(5, "gone").encode()))
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert leftovers(client) == 0

    async def test_disconnect_cancels_handlers(self, wires: Wires) -> None:
        gate = Gate()
        peer, server = await wires.server(Gate=gate)
        await peer.write(call(1, "Gate"), call(3, "Gate", timeout_nano=10**12))
        await gate.entered.wait()
        await peer.aclose()
        await asyncio.wait_for(gate.cancelled.wait(), PATIENCE)
        assert server is not None

    async def test_half_closed_client_is_gone(self, wires: Wires) -> None:
        gate = Gate()
        peer, _ = await wires.server(Gate=gate)
        await peer.write(call(1, "Gate"))
        await gate.entered.wait()
        peer.write_eof()
        await asyncio.wait_for(gate.cancelled.wait(), PATIENCE)
        assert await peer.is_cut_off()

    async def test_handler_may_clean_up_in_peace(self, wires: Wires, until: Until) -> None:
        steps: list[str] = []

        async def careful(context: CallContext, payload: bytes) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                steps.append("cleaning")
                await asyncio.sleep(0.05)
                steps.append("clean")
            return b""

        peer, server = await wires.server(Careful=careful)
        await peer.write(call(1, "Careful"))
        await until(lambda: bool(server._tasks))
        await asyncio.sleep(0)
        await peer.aclose()
        await until(lambda: bool(steps))
        await server.aclose()
        assert steps == ["cleaning", "clean"]


class TestOversized:
    async def test_request_is_refused_locally(self, wires: Wires) -> None:
        client, _ = await wires.both(Echo=echo)
        with pytest.raises(ResourceExhausted, match="exceed maximum message size of 4194304"):
            await client.call("test", "Echo", bytes(MAX_PAYLOAD))
        assert leftovers(client) == 0
        assert await client.call("test", "Echo", b"a") == b"a"

    async def test_answer_is_refused_by_the_server(self, wires: Wires) -> None:
        async def flood(context: CallContext, payload: bytes) -> bytes:
            return bytes(MAX_PAYLOAD)

        client, _ = await wires.both(Flood=flood, Echo=echo)
        with pytest.raises(ResourceExhausted, match="exceed maximum message size of 4194304"):
            await client.call("test", "Flood", b"")
        assert await client.call("test", "Echo", b"a") == b"a"

    async def test_request_is_answered(self, wires: Wires) -> None:
        peer, _ = await wires.server(Echo=echo)
        length = MAX_PAYLOAD + 1
        await peer.write(header(length, 1, 1), bytes(length), call(3, payload=b"next"))
        stream_id, response = await peer.response()
        assert (stream_id, response.code) == (1, Code.RESOURCE_EXHAUSTED)
        assert await peer.response() == (3, Response(payload=b"next"))

    async def test_answer_fails_its_call(self, wires: Wires) -> None:
        client, peer = await wires.client()
        calls = [asyncio.create_task(client.call("test", "Echo", b"")) for _ in range(2)]
        first, _ = await peer.request()
        second, _ = await peer.request()
        length = MAX_PAYLOAD + 1
        await peer.write(header(length, first, 2), bytes(length), encode(second, 2, 0))
        with pytest.raises(ResourceExhausted):
            await calls[0]
        assert await calls[1] == b""


class TestBrokenProtocol:
    @pytest.mark.parametrize(
        ("wire", "answered"),
        [
            (call(2), 2),
            (encode(2, 3, 0, b"a"), 2),
            (call(1), 1),
            (encode(5, 3, 0, b"a"), 5),
            (header(0, 3, 4), None),
            (encode(1, 2, 0), None),
        ],
    )
    async def test_server_goes_on(
        self, wires: Wires, caplog: pytest.LogCaptureFixture, wire: bytes, answered: int | None
    ) -> None:
        gate = Gate()
        peer, _ = await wires.server(Gate=gate, Echo=echo)
        await peer.write(call(1, "Gate"))
        await gate.entered.wait()
        await peer.write(wire, call(3, payload=b"next"))
        if answered is not None:
            stream_id, response = await peer.response()
            assert (stream_id, response.code) == (answered, Code.INVALID_ARGUMENT)
        assert await peer.response() == (3, Response(payload=b"next"))
        assert not gate.cancelled.is_set()
        assert not caplog.records

    @pytest.mark.parametrize("flags", [0, 1, 2])
    @pytest.mark.parametrize("route", [("test", "NoSuch"), ("no.such.Service", "Echo")])
    async def test_data_on_the_stream_of_an_unknown_method_in_one_write(
        self,
        wires: Wires,
        caplog: pytest.LogCaptureFixture,
        route: tuple[str, str],
        flags: int,
    ) -> None:
        peer, _ = await wires.server(Echo=echo)
        request = encode(1, 1, flags, Request(*route).encode())
        await peer.write(request + encode(1, 3, 0, b"a") + encode(1, 3, 5) + call(3))
        answers = [await peer.response() for _ in range(4)]
        assert [(stream_id, answer.code) for stream_id, answer in answers] == [
            (1, Code.UNIMPLEMENTED),
            (1, Code.INVALID_ARGUMENT),
            (1, Code.INVALID_ARGUMENT),
            (3, Code.OK),
        ]
        assert not caplog.records

    async def test_text_as_of_http_is_passed_over_until_it_ends(
        self, wires: Wires, caplog: pytest.LogCaptureFixture
    ) -> None:
        peer, _ = await wires.server(Echo=echo)
        await peer.write(b"GET / HTTP/1.1\r\n\r\n")
        peer.write_eof()
        assert await peer.is_cut_off()
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("taskd.ttrpc", logging.WARNING)
        assert record.getMessage().endswith(" ended: truncated frame")

    @pytest.mark.parametrize("wire", [call(1)[:-1], b"\0", header(MAX_PAYLOAD + 1, 1, 1)])
    async def test_truncated(
        self, wires: Wires, caplog: pytest.LogCaptureFixture, wire: bytes
    ) -> None:
        peer, _ = await wires.server(Echo=echo)
        await peer.write(wire)
        peer.write_eof()
        assert await peer.is_cut_off()
        (record,) = caplog.records
        assert record.getMessage().endswith(" ended: truncated frame")

    async def test_hang_up_is_not_worth_a_word(
        self, wires: Wires, caplog: pytest.LogCaptureFixture
    ) -> None:
        peer, _ = await wires.server(Echo=echo)
        peer.write_eof()
        assert await peer.is_cut_off()
        assert not caplog.records

    async def test_answers_before_the_fault_are_given(self, wires: Wires) -> None:
        client, peer = await wires.client()
        calls = [asyncio.create_task(client.call("test", "Echo", b"")) for _ in range(2)]
        await peer.request()
        await peer.request()
        await peer.write(encode(1, 2, 0, Response(payload=b"a").encode()) + header(0, 1, 9))
        assert await calls[0] == b"a"
        with pytest.raises(ConnectionClosed, match="ttrpc: closed"):
            await calls[1]

    @pytest.mark.parametrize(
        ("wire", "reason"),
        [
            (header(0, 1, 9), "malformed header: unknown message type 9"),
        ],
    )
    async def test_client_ends_the_connection(
        self, wires: Wires, caplog: pytest.LogCaptureFixture, wire: bytes, reason: str
    ) -> None:
        client, peer = await wires.client()
        answer = asyncio.create_task(client.call("test", "Echo", b""))
        await peer.request()
        await peer.write(wire)
        with pytest.raises(ConnectionClosed):
            await answer
        await asyncio.wait_for(client.wait_closed(), PATIENCE)
        (record,) = caplog.records
        assert record.getMessage().endswith(f" ended: {reason}")

    @pytest.mark.parametrize("wire", [encode(1, 2, 0, b"\xff"), encode(1, 3, 0, b"data"), call(1)])
    async def test_answer_that_is_none_fails_its_call(self, wires: Wires, wire: bytes) -> None:
        client, peer = await wires.client()
        answer = asyncio.create_task(client.call("test", "Echo", b""))
        await peer.request()
        await peer.write(wire)
        with pytest.raises(ProtocolError):
            await answer
        assert not client.closed

    async def test_request_that_is_none(self, wires: Wires) -> None:
        peer, _ = await wires.server(Echo=echo)
        await peer.write(encode(1, 1, 0, b"\x0a\xff"), call(3, payload=b"next"))
        stream_id, response = await peer.response()
        assert (stream_id, response.code) == (1, Code.INVALID_ARGUMENT)
        assert (await peer.response())[0] == 3


async def test_a_client_that_does_not_read_is_not_read_from(wires: Wires, until: Until) -> None:
    handled = 0

    async def count(context: CallContext, payload: bytes) -> bytes:
        nonlocal handled
        handled += 1
        return bytes(1 << 16)

    peer, _ = await wires.server(Count=count)
    calls = 2000
    writing = asyncio.create_task(
        peer.write(*(call(2 * n + 1, "Count", bytes(1 << 10)) for n in range(calls)))
    )
    await until(lambda: handled > 0)
    await asyncio.sleep(0.1)
    assert handled < calls
    for _ in range(calls):
        await peer.frame()
    await writing
    assert handled == calls


async def test_unary_request_is_as_another_client_writes_it(wires: Wires) -> None:
    client, peer = await wires.client()
    answer = asyncio.create_task(client.call("s", "M", b"p", metadata={"K": ["v"]}))
    frame = await peer.frame()
    assert (frame.stream_id, frame.type, frame.flags) == (1, 1, 0)
    assert frame.payload == b"\x0a\x01s\x12\x01M\x1a\x01p\x2a\x06\x0a\x01k\x12\x01v"
    assert Request.decode(frame.payload).service == "s"
    await client.aclose()
    with pytest.raises(ConnectionClosed):
        await answer
