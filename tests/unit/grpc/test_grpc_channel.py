"""The channel: with our server, and with one that says on the wire what servers rarely do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from grpc_peer import framed
from grpc_service import Message, Service
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded
from h2.settings import SettingCodes

from taskd.api.server import ApiServer
from taskd.grpc.channel import Channel
from taskd.proto.google.protobuf import Timestamp

pytestmark = pytest.mark.usefixtures("on_engine")

HELLO = Message(value=b"hello")


async def call(
    channel: Channel, method: str, message: object = HELLO, *, timeout: float | None = 20
) -> Message:
    async with channel.request(
        f"/test.Service/{method}",
        Cardinality.UNARY_UNARY,
        type(message),
        Message,
        timeout=timeout,
        metadata={"containerd-namespace": "ns"},
    ) as stream:
        await stream.send_message(message, end=True)
        answer: Message = await stream.recv_message()
        return answer


Work = Callable[[H2Connection, Event, asyncio.StreamWriter], None]


@asynccontextmanager
async def hosted(path: Path, work: Work, limit: int = 100) -> AsyncIterator[Channel]:
    """A channel to a server that does `work` for each event."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.local_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: limit})
        h2.local_settings.acknowledge()
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        with suppress(asyncio.CancelledError):  # which asyncio would complain of
            while data := await reader.read(1 << 16):
                for event in h2.receive_data(data):
                    if isinstance(event, DataReceived):
                        h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    work(h2, event, writer)
                writer.write(h2.data_to_send())
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    async with server, Channel(path) as channel:
        yield channel


def answer(h2: H2Connection, stream_id: int) -> None:
    h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
    h2.send_data(stream_id, framed(bytes(HELLO)))
    h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)


@pytest.mark.parametrize("size", [0, 20_000, 9 << 20])
async def test_messages_of_all_sizes(path: Path, size: int) -> None:
    message = Message(value=bytes(size))
    async with Channel(path) as channel:
        assert await call(channel, "Echo", message) == message
        async with channel.request(
            "/test.Service/Repeat", Cardinality.STREAM_STREAM, Message, Message
        ) as stream:
            for _ in range(3):
                await stream.send_message(message)
                assert await stream.recv_message() == message
            await stream.end()
            assert await stream.recv_message() is None


async def test_errors(path: Path, service: Service) -> None:
    async with Channel(path) as channel:
        for method, message, status in (
            ("Fail", Timestamp(seconds=3), Status.NOT_FOUND),
            ("Fail", Timestamp(seconds=1_000_000), Status.NOT_FOUND),
            ("Fly", HELLO, Status.UNIMPLEMENTED),
        ):
            with pytest.raises(GRPCError) as caught:
                await call(channel, method, message)
            assert caught.value.status is status
        with pytest.raises((TimeoutError, GRPCError)):
            await call(channel, "Wait", Timestamp(), timeout=0.05)
        assert await call(channel, "Echo") == HELLO


@pytest.mark.parametrize("text", ["exit status 1: ", " a word", " ", "   ", "%20", "\n"])
async def test_an_error_text_with_space_at_its_ends(path: Path, text: str) -> None:
    async with Channel(path) as channel:
        with pytest.raises(GRPCError) as caught:
            await call(channel, "Refuse", Message(value=text.encode()))
        assert (caught.value.status, caught.value.message) == (Status.UNKNOWN, text)


@pytest.mark.parametrize("seconds", [99_999_999, 1e8, 1e9, 1e300, math.inf])
async def test_a_timeout_that_is_as_good_as_none(
    path: Path, service: Service, seconds: float
) -> None:
    async with Channel(path) as channel:
        assert await call(channel, "Echo", timeout=seconds) == HELLO


async def test_many_at_once_and_given_up(path: Path, service: Service) -> None:
    async with Channel(path) as channel:
        waits = [asyncio.create_task(call(channel, "Wait", Timestamp())) for _ in range(300)]
        answers = await asyncio.gather(*(call(channel, "Echo") for _ in range(300)))
        assert answers == [HELLO] * 300
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert await call(channel, "Echo") == HELLO


async def test_a_server_that_goes_away(path: Path, server: ApiServer, service: Service) -> None:
    async with Channel(path) as channel:
        wait = asyncio.create_task(call(channel, "Wait", Timestamp()))
        while not service.begun:
            await asyncio.sleep(0.01)
        await server.drain(0.1)
        with pytest.raises(GRPCError) as caught:
            await wait
        assert caught.value.status is Status.UNAVAILABLE
        lost = asyncio.create_task(channel.wait_lost())
        await server.close()
        async with asyncio.timeout(10):
            await lost
        with pytest.raises((OSError, StreamTerminatedError)):
            await call(channel, "Echo")


async def test_as_many_at_once_as_the_server_takes(folder: Path) -> None:
    open_now: set[int] = set()

    def work(h2: H2Connection, event: Event, writer: asyncio.StreamWriter) -> None:
        if isinstance(event, RequestReceived):
            open_now.add(event.stream_id)
            assert len(open_now) <= 2
        if isinstance(event, StreamEnded):
            open_now.discard(event.stream_id)
            answer(h2, event.stream_id)

    async with hosted(folder / "h", work, limit=2) as channel:
        assert await call(channel, "Echo") == HELLO
        answers = await asyncio.gather(*(call(channel, "Echo") for _ in range(50)))
        assert answers == [HELLO] * 50


async def test_an_answer_before_all_is_sent(folder: Path) -> None:
    """The server refuses a large message at its prefix."""

    def work(h2: H2Connection, event: Event, writer: asyncio.StreamWriter) -> None:
        if isinstance(event, RequestReceived):
            fields = [(":status", "200"), ("grpc-status", "8"), ("grpc-message", "too large")]
            h2.send_headers(event.stream_id, fields, end_stream=True)
            writer.write(h2.data_to_send())
            h2.reset_stream(event.stream_id, 0)

    async with hosted(folder / "h", work) as channel:
        for _ in range(3):
            with pytest.raises(GRPCError) as caught:
                await call(channel, "Echo", Message(value=bytes(8 << 20)))
            assert (caught.value.status, caught.value.message) == (
                Status.RESOURCE_EXHAUSTED,
                "too large",
            )


async def test_a_reset_after_the_answer_is_no_error(folder: Path) -> None:
    """It comes with the answer, while the client has not yet said all."""

    def work(h2: H2Connection, event: Event, writer: asyncio.StreamWriter) -> None:
        if isinstance(event, DataReceived):
            answer(h2, event.stream_id)
            h2.reset_stream(event.stream_id, 0)

    async with hosted(folder / "h", work) as channel:
        for _ in range(3):
            with suppress(_EnoughError):
                async with channel.request(
                    "/test.Service/Repeat", Cardinality.STREAM_STREAM, Message, Message
                ) as stream:
                    await stream.send_message(HELLO)
                    assert await stream.recv_message() == HELLO
                    assert await stream.recv_message() is None
                    raise _EnoughError


class _EnoughError(Exception):
    """Leaves a call whose client has not said all."""


@pytest.mark.parametrize("how", ["goaway", "close", "broken"])
async def test_a_connection_that_ends_in_the_middle(folder: Path, how: str) -> None:
    seen = 0

    def work(h2: H2Connection, event: Event, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        if not isinstance(event, StreamEnded):
            return
        seen += 1
        if seen % 2:
            answer(h2, event.stream_id)
        elif how == "goaway":
            h2.close_connection()
        elif how == "close":
            writer.close()
        else:
            writer.write(b"\x00\x00\x00\x01\x00\x00\x00\x00\x00")  # HEADERS of stream 0

    async with hosted(folder / "h", work) as channel:
        for _ in range(3):
            assert await call(channel, "Echo") == HELLO
            with pytest.raises((StreamTerminatedError, OSError)):
                await call(channel, "Echo")
