"""Streaming calls of all kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from conftest import Wires
from ttrpc_peer import PATIENCE

from taskd.errors import (
    Code,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from taskd.ttrpc import (
    MAX_PAYLOAD,
    CallContext,
    Client,
    ConnectionClosed,
    ServerStream,
    StreamClosed,
    Streaming,
)
from taskd.ttrpc.frames import NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, Frame, encode
from taskd.ttrpc.inbox import CAPACITY
from taskd.ttrpc.messages import Request, Response

Until = Callable[[Callable[[], bool]], Awaitable[None]]

END = REMOTE_CLOSED | NO_DATA


async def total(context: CallContext, stream: ServerStream) -> bytes:
    return b"%d" % sum([int(message) async for message in stream])


async def count(context: CallContext, stream: ServerStream) -> None:
    upto = await stream.recv()
    assert upto is not None
    assert await stream.recv() is None
    for number in range(int(upto)):
        await stream.send(b"%d" % number)


async def double(context: CallContext, stream: ServerStream) -> None:
    async for message in stream:
        await stream.send(message * 2)


async def forever(context: CallContext, stream: ServerStream) -> None:
    await asyncio.Event().wait()


def leftovers(client: Client) -> int:
    return len(client._streams) + len(client._connection.streams)


class TestKinds:
    async def test_client_streams(self, wires: Wires) -> None:
        client, _ = await wires.both(Total=Streaming(total))
        async with client.stream("test", "Total", None) as stream:
            for number in range(10):
                await stream.send(b"%d" % number)
            await stream.close_send()
            assert await stream.recv() == b"45"
            assert await stream.recv() is None
        assert leftovers(client) == 0

    @pytest.mark.parametrize("upto", [0, 3, 1000])
    async def test_server_streams(self, wires: Wires, upto: int) -> None:
        client, _ = await wires.both(Count=Streaming(count))
        async with client.stream("test", "Count", b"%d" % upto) as stream:
            assert [int(message) async for message in stream] == list(range(upto))
            with pytest.raises(StreamClosed):
                await stream.send(b"")
        assert leftovers(client) == 0

    async def test_both_stream(self, wires: Wires) -> None:
        client, _ = await wires.both(Double=Streaming(double))
        async with client.stream("test", "Double", None) as stream:
            for message in (b"a", b"", b"bc"):
                await stream.send(message)
                assert await stream.recv() == message * 2
            await stream.close_send()
            await stream.close_send()
            assert await stream.recv() is None
        assert leftovers(client) == 0

    async def test_first_message_with_the_request(self, wires: Wires) -> None:
        client, _ = await wires.both(Double=Streaming(double))
        async with client.stream("test", "Double", b"a", client_streaming=True) as stream:
            assert await stream.recv() == b"aa"
            await stream.send(b"b")
            assert await stream.recv() == b"bb"

    async def test_many_at_once(self, wires: Wires) -> None:
        client, server = await wires.both(
            Total=Streaming(total), Count=Streaming(count), Double=Streaming(double)
        )

        async def use(number: int) -> None:
            async with client.stream("test", "Count", b"%d" % number) as stream:
                assert len([message async for message in stream]) == number
            async with client.stream("test", "Double", None) as stream:
                for _ in range(number):
                    await stream.send(b"x")
                    assert await stream.recv() == b"xx"

        await asyncio.gather(*(use(number) for number in range(40)))
        assert leftovers(client) == 0
        assert len(server._tasks) <= 40


class TestOnTheWire:
    async def test_server_stream(self, wires: Wires) -> None:
        peer, _ = await wires.server(Count=Streaming(count))
        await peer.write(encode(1, 1, REMOTE_CLOSED, Request("test", "Count", b"2").encode()))
        assert [await peer.frame() for _ in range(3)] == [
            Frame(1, 3, 0, b"0"),
            Frame(1, 3, 0, b"1"),
            Frame(1, 3, END, b""),
        ]

    async def test_client_stream(self, wires: Wires) -> None:
        peer, _ = await wires.server(Total=Streaming(total))
        await peer.write(
            encode(1, 1, REMOTE_OPEN, Request("test", "Total").encode()),
            encode(1, 3, 0, b"1"),
            encode(1, 3, 0, b"2"),
            encode(1, 3, END),
        )
        assert await peer.response() == (1, Response(payload=b"3"))

    async def test_client_side(self, wires: Wires) -> None:
        client, peer = await wires.client()
        async with client.stream("s", "M", None, timeout=PATIENCE) as stream:
            frame = await peer.frame()
            assert (frame.stream_id, frame.type, frame.flags) == (1, 1, REMOTE_OPEN)
            assert Request.decode(frame.payload).timeout_nano > 0
            await stream.send(b"a")
            await stream.close_send()
            assert await peer.frame() == Frame(1, 3, 0, b"a")
            assert await peer.frame() == Frame(1, 3, END, b"")
            await peer.write(encode(1, 3, 0, b"b"), encode(1, 3, REMOTE_CLOSED, b"c"))
            assert [message async for message in stream] == [b"b", b"c"]

    async def test_data_after_the_answer(self, wires: Wires) -> None:
        async def hasty(context: CallContext, stream: ServerStream) -> bytes:
            return b"enough"

        peer, _ = await wires.server(Hasty=Streaming(hasty))
        await peer.write(encode(1, 1, REMOTE_OPEN, Request("test", "Hasty").encode()))
        assert await peer.response() == (1, Response(payload=b"enough"))
        await peer.write(encode(1, 3, 0, b"more"))
        assert (await peer.response())[1].code == Code.INVALID_ARGUMENT

    async def test_data_on_a_closed_stream_cancels_the_handler(
        self, wires: Wires, until: Until
    ) -> None:
        peer, server = await wires.server(Forever=Streaming(forever))
        await peer.write(
            encode(1, 1, REMOTE_CLOSED, Request("test", "Forever").encode()),
            encode(1, 3, 0, b"more"),
        )
        stream_id, response = await peer.response()
        assert (stream_id, response.code) == (1, Code.INVALID_ARGUMENT)
        await until(lambda: not server._tasks)

    async def test_stream_to_a_unary_method(self, wires: Wires) -> None:
        async def echo(context: CallContext, payload: bytes) -> bytes:
            await asyncio.sleep(0.01)
            return payload

        client, _ = await wires.both(Echo=echo)
        async with client.stream("test", "Echo", b"a", client_streaming=True) as stream:
            await stream.send(b"ignored")
            assert [message async for message in stream] == [b"a"]


class TestFailures:
    async def test_error_after_data(self, wires: Wires) -> None:
        async def fail(context: CallContext, stream: ServerStream) -> None:
            await stream.send(b"first")
            raise NotFound("the second")

        client, _ = await wires.both(Fail=Streaming(fail))
        async with client.stream("test", "Fail", None) as stream:
            assert await stream.recv() == b"first"
            for _ in range(2):
                with pytest.raises(NotFound, match="the second: not found"):
                    await stream.recv()
            with pytest.raises(StreamClosed):
                await stream.send(b"")
            await stream.close_send()

    async def test_unknown_method(self, wires: Wires) -> None:
        client, _ = await wires.both()
        async with client.stream("test", "None", None) as stream:
            with pytest.raises(Unimplemented, match="method None"):
                await stream.recv()

    async def test_deadline(self, wires: Wires, until: Until) -> None:
        client, server = await wires.both(Forever=Streaming(forever))
        async with client.stream("test", "Forever", None, timeout=0.05) as stream:
            with pytest.raises(DeadlineExceeded):
                await stream.recv()
            assert not client._connection.streams
        await until(lambda: not server._tasks)

    async def test_deadline_while_sending(self, wires: Wires) -> None:
        client, _peer = await wires.client()
        async with client.stream("test", "Deaf", None, timeout=0.1) as stream:
            with pytest.raises(DeadlineExceeded):
                while True:
                    await stream.send(bytes(1 << 20))

    async def test_giving_up_ends_the_clients_side(self, wires: Wires) -> None:
        ended = asyncio.Event()

        async def listen(context: CallContext, stream: ServerStream) -> None:
            async for _ in stream:
                pass
            ended.set()

        client, _ = await wires.both(Listen=Streaming(listen))
        with pytest.raises(KeyError):
            async with client.stream("test", "Listen", None) as stream:
                await stream.send(b"a")
                raise KeyError
        assert leftovers(client) == 0
        await asyncio.wait_for(ended.wait(), PATIENCE)

    async def test_connection_lost(self, wires: Wires) -> None:
        client, peer = await wires.client()
        async with client.stream("test", "Any", None) as stream:
            await peer.frame()
            await peer.write(encode(1, 3, 0, b"last"))
            await peer.aclose()
            assert await stream.recv() == b"last"
            with pytest.raises(ConnectionClosed):
                await stream.recv()
            with pytest.raises(ConnectionClosed):
                await stream.send(b"")
            with pytest.raises(ConnectionClosed):
                await stream.close_send()
        with pytest.raises(ConnectionClosed):
            async with client.stream("test", "Any", None):
                pass

    async def test_oversized_message(self, wires: Wires) -> None:
        client, _ = await wires.both(Double=Streaming(double))
        async with client.stream("test", "Double", None) as stream:
            with pytest.raises(ResourceExhausted):
                await stream.send(bytes(MAX_PAYLOAD + 1))
            await stream.send(b"a")
            assert await stream.recv() == b"aa"
            # Its double does not fit.
            await stream.send(bytes(MAX_PAYLOAD))
            with pytest.raises(ResourceExhausted):
                await stream.recv()

    async def test_one_reader_at_a_time(self, wires: Wires) -> None:
        client, _ = await wires.both(Forever=Streaming(forever))
        async with client.stream("test", "Forever", None) as stream:
            first = asyncio.create_task(stream.recv())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError):
                await stream.recv()
            first.cancel()
            await asyncio.wait([first])


class TestFlow:
    async def test_sender_waits_for_the_reader(self, wires: Wires, until: Until) -> None:
        sent = 0

        async def flood(context: CallContext, stream: ServerStream) -> None:
            nonlocal sent
            for _ in range(100):
                await stream.send(bytes(1 << 20))
                sent += 1

        peer, _ = await wires.server(Flood=Streaming(flood))
        await peer.write(encode(1, 1, REMOTE_CLOSED, Request("test", "Flood").encode()))
        await until(lambda: sent > 0)
        await asyncio.sleep(0.1)
        assert sent < 10
        frames = [await peer.frame() for _ in range(101)]
        assert frames[-1] == Frame(1, 3, END, b"")

    async def test_reader_that_is_slow_loses_nothing(self, wires: Wires) -> None:
        client, _ = await wires.both(Count=Streaming(count))
        async with client.stream("test", "Count", b"5000") as stream:
            await asyncio.sleep(0.1)
            received = []
            async for message in stream:
                received.append(int(message))
                if len(received) % 500 == 0:
                    await asyncio.sleep(0.01)
        assert received == list(range(5000))

    async def test_client_that_never_reads_loses_the_stream_alone(
        self, wires: Wires, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("taskd.ttrpc.transport._FULL_SECONDS", 0.1)
        client, _ = await wires.both(Count=Streaming(count), Double=Streaming(double))
        async with client.stream("test", "Count", b"100000") as stuck:
            await asyncio.sleep(0.05)
            async with client.stream("test", "Double", None, timeout=PATIENCE) as stream:
                await stream.send(b"a")
                assert await stream.recv() == b"aa"
            received = 0
            with pytest.raises(ResourceExhausted, match="ttrpc: stream buffer full"):
                while await stuck.recv() is not None:
                    received += 1
            assert received >= CAPACITY
        assert leftovers(client) == 0
        assert not client._full

    async def test_handler_that_never_reads_loses_the_stream_alone(
        self, wires: Wires, until: Until, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("taskd.ttrpc.transport._FULL_SECONDS", 0.1)
        client, server = await wires.both(Forever=Streaming(forever), Double=Streaming(double))
        async with client.stream("test", "Forever", None) as stuck:
            for _ in range(CAPACITY * 2):
                await stuck.send(b"a")
            with pytest.raises(ResourceExhausted, match="ttrpc: stream buffer full"):
                await stuck.recv()
        await until(lambda: not server._tasks)
        async with client.stream("test", "Double", None, timeout=PATIENCE) as stream:
            await stream.send(b"a")
            assert await stream.recv() == b"aa"

    async def test_full_stream_that_is_left_does_not_hold_up_the_connection(
        self, wires: Wires
    ) -> None:
        client, _ = await wires.both(Count=Streaming(count), Double=Streaming(double))
        async with client.stream("test", "Count", b"1000") as stuck:
            await asyncio.sleep(0.05)
            assert stuck._inbox.full
        assert not client._full
        async with client.stream("test", "Double", None, timeout=0.9) as stream:
            await stream.send(b"a")
            assert await stream.recv() == b"aa"
