"""The server, as clients see it that say on the wire what clients should not, or rarely do."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from pathlib import Path
from urllib.parse import unquote

import pytest
from grpc_peer import Peer, framed
from grpc_service import Message, Service
from h2.settings import SettingCodes
from harness.real import need
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.api.server import ApiServer
from taskd.errors import Code
from taskd.grpc import connection
from taskd.grpc.codecs import MAX_MESSAGE_SIZE
from taskd.proto.google.protobuf import Timestamp

ECHO = "/test.Service/Echo"
HELLO = bytes(Message(value=b"hello"))


async def works(peer: Peer) -> bool:
    """A call on the connection gets its answer."""
    return (await peer.call(ECHO, HELLO)).data == framed(HELLO)


async def settled(service: Service, begun: int) -> None:
    async with asyncio.timeout(10):
        while (service.begun, service.ended) != (begun, begun):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("called", "words"),
    [
        ("/test.Service/Fly", "unknown method Fly for service test.Service"),
        ("/test.Other/Echo", "unknown service test.Other"),
        ("/test", 'malformed method name: "/test"'),
    ],
)
async def test_what_is_not_there_is_told_so_that_go_understands(
    path: Path, called: str, words: str
) -> None:
    async with Peer.on(path) as peer:
        answer = await peer.call(called, b"")
        assert answer.headers["content-type"].startswith("application/grpc")
        assert (answer.status, unquote(answer.words)) == (Code.UNIMPLEMENTED, words)
        assert await works(peer)


async def test_go_understands_that_a_service_is_not_there(path: Path) -> None:
    """Without a content-type it would speak of a malformed header, and not fall back."""
    need("ctr")
    ctr = await asyncio.create_subprocess_exec(
        *("ctr", "--address", str(path), "tasks", "ls"), stderr=asyncio.subprocess.PIPE
    )
    _, words = await ctr.communicate()
    assert b"code = Unimplemented desc = unknown service containerd.services.tasks.v1" in words


@pytest.mark.parametrize(
    ("fields", "method", "status"),
    [((), "GET", "405"), ((("content-type", "text/html"),), "POST", "415")],
)
async def test_what_is_no_grpc(
    path: Path, fields: tuple[tuple[str, str], ...], method: str, status: str
) -> None:
    async with Peer.on(path) as peer:
        stream_id = peer.open(ECHO, *fields, method=method, end=True)
        assert (await peer.answer(stream_id)).headers[":status"] == status
        assert await works(peer)


@pytest.mark.parametrize("timeout", ["1n", "0S", "0n", "1u"])
async def test_a_deadline_that_is_over_on_arrival(
    path: Path, service: Service, timeout: str
) -> None:
    async with Peer.on(path) as peer:
        for called in ("/test.Service/Wait", "/test.Service/Pour"):
            answer = await peer.call(called, b"", ("grpc-timeout", timeout))
            assert (answer.status, answer.words) == (
                Code.DEADLINE_EXCEEDED,
                "context deadline exceeded",
            )
        assert await works(peer)
    await settled(service, service.begun)


async def test_a_deadline_is_kept_for_a_request_that_is_not_whole(path: Path) -> None:
    async with Peer.on(path) as peer:
        stream_id = peer.open(ECHO, ("grpc-timeout", "50m"))
        peer.send(stream_id, framed(HELLO)[:-1], end=False)
        answer = await peer.answer(stream_id)
        assert answer.status == Code.DEADLINE_EXCEEDED
        assert await works(peer)


@pytest.mark.parametrize("called", [ECHO, "/test.Service/Pour", "/test.Service/Repeat"])
@pytest.mark.parametrize("length", [0, 1, 4, 5, len(framed(HELLO)) - 1])
async def test_a_request_that_is_cut_short(
    path: Path, caplog: pytest.LogCaptureFixture, called: str, length: int
) -> None:
    async with Peer.on(path) as peer:
        stream_id = peer.open(called)
        peer.send(stream_id, framed(HELLO)[:length])
        answer = await peer.answer(stream_id)
        if called.endswith("Repeat") and length == 0:
            assert answer.status == Code.OK
        else:
            words = "unexpected EOF" if length else "EOF"
            assert (answer.status, unquote(answer.words)) == (Code.INTERNAL, words)
        assert await works(peer)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "123456789S", "1s"])
async def test_a_deadline_that_is_none(path: Path, timeout: str) -> None:
    async with Peer.on(path) as peer:
        answer = await peer.call(ECHO, HELLO, ("grpc-timeout", timeout))
        assert answer.status == Code.INTERNAL
        assert "grpc-timeout" in answer.words
        assert (await peer.call(ECHO, HELLO, ("grpc-timeout", "99999999H"))).status == Code.OK


@pytest.mark.parametrize("called", [ECHO, "/test.Service/Repeat"])
@pytest.mark.parametrize(
    ("encoding", "data", "code"),
    [
        ("gzip", gzip.compress(HELLO, mtime=0), Code.OK),
        ("gzip", HELLO, Code.INTERNAL),
        ("gzip", gzip.compress(HELLO, mtime=0)[:-9], Code.INTERNAL),
        ("gzip", gzip.compress(bytes(MAX_MESSAGE_SIZE + 1), mtime=0), Code.RESOURCE_EXHAUSTED),
        ("deflate", zlib.compress(HELLO), Code.UNIMPLEMENTED),
        ("identity", HELLO, Code.INTERNAL),
        ("", HELLO, Code.INTERNAL),
    ],
    ids=["whole", "other", "cut-off", "too-large", "deflate", "identity", "none"],
)
async def test_messages_that_are_compressed(
    path: Path, called: str, encoding: str, data: bytes, code: Code
) -> None:
    async with Peer.on(path) as peer:
        stream_id = peer.open(called, *((("grpc-encoding", encoding),) if encoding else ()))
        peer.send(stream_id, framed(data, compressed=True))
        answer = await peer.answer(stream_id)
        assert answer.status == code, answer.words
        assert answer.data == (framed(HELLO) if code is Code.OK else b"")
        assert await works(peer)


@pytest.mark.parametrize("called", [ECHO, "/test.Service/Repeat"])
@pytest.mark.parametrize("compressed", [False, True])
async def test_a_message_that_is_too_large_is_refused_at_its_prefix(
    path: Path, called: str, compressed: bool
) -> None:
    size = MAX_MESSAGE_SIZE + 1
    async with Peer.on(path) as peer:
        stream_id = peer.open(called, ("grpc-encoding", "gzip"))
        peer.send(stream_id, framed(b"", compressed=compressed, size=size), end=False)
        answer = await peer.answer(stream_id)
        assert answer.status == Code.RESOURCE_EXHAUSTED
        assert answer.words == (
            f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE_SIZE})"
        )
        assert await works(peer)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", framed(HELLO)[:-1]], ids=["empty", "prefix", "message"]
)
async def test_a_request_that_is_cut_off(path: Path, data: bytes) -> None:
    async with Peer.on(path) as peer:
        stream_id = peer.open(ECHO)
        peer.send(stream_id, data)
        assert (await peer.answer(stream_id)).status == Code.INTERNAL
        assert await works(peer)


@pytest.mark.parametrize("size", [1_000, 40_000, 1_000_000])
async def test_a_long_error_text_ends_its_call_alone(
    path: Path, service: Service, size: int
) -> None:
    async with Peer.on(path) as peer:
        waiting = peer.open("/test.Service/Wait")
        peer.send(waiting, framed(b""))
        answer = await peer.call("/test.Service/Fail", bytes(Timestamp(seconds=size)))
        assert answer.status == Code.NOT_FOUND
        text = unquote(answer.words, errors="strict")
        if size == 1_000:
            assert text == "ü" * size + ": not found"
        else:
            assert text.startswith("ü" * 1_000)
            assert f"cut off, of {size + len(': not found')} characters" in text
        assert await works(peer)
        assert not peer.answers[waiting].ended


@pytest.mark.parametrize("limit", [8 << 10, 16 << 10])
async def test_an_error_text_has_room_in_what_the_client_takes(path: Path, limit: int) -> None:
    async with Peer.on(path, {SettingCodes.MAX_HEADER_LIST_SIZE: limit}) as peer:
        answer = await peer.call("/test.Service/Fail", bytes(Timestamp(seconds=100_000)))
        assert answer.status == Code.NOT_FOUND
        assert limit / 4 < sum(map(len, answer.headers.values())) < limit


async def test_calls_that_are_given_up_by_the_thousand(path: Path, service: Service) -> None:
    """libnghttp2 by itself takes more than a thousand resets for an attack."""
    async with Peer.on(path) as peer:
        assert await works(peer)
        for _ in range(10):
            peer.give_up("/test.Service/Wait", 1_000)
            assert await works(peer)
    await settled(service, service.begun)


async def test_calls_that_are_given_up_while_they_wait(path: Path, service: Service) -> None:
    async with Peer.on(path) as peer:
        opened = [peer.open("/test.Service/Wait") for _ in range(1_000)]
        for stream_id in opened:
            peer.send(stream_id, framed(b""))
        assert await works(peer)
        assert service.begun == 1_000
        for stream_id in opened:
            peer.h2.reset_stream(stream_id, 8)
        assert await works(peer)
        await settled(service, 1_000)


async def test_calls_end_with_their_connection(path: Path, service: Service) -> None:
    async with Peer.on(path) as peer:
        for called in ("/test.Service/Wait", "/test.Service/Pour"):
            peer.send(peer.open(called), framed(b""))
        assert await works(peer)
    await settled(service, 2)


@pytest.mark.parametrize("kind", [0x0B, 0x2A, 0x42, 0xFF])
async def test_frames_that_nobody_knows_are_passed_over(path: Path, kind: int) -> None:
    async with Peer.on(path) as peer:
        peer.flush()
        peer.write(b"\x00\x00\x04" + bytes([kind]) + b"\x00\x00\x00\x00\x00what")
        assert await works(peer)
        stream_id = peer.open(ECHO)
        peer.flush()
        peer.write(b"\x00\x00\x04" + bytes([kind]) + b"\x00\x00\x00\x00\x01what")
        peer.send(stream_id, framed(HELLO))
        assert (await peer.answer(stream_id)).data == framed(HELLO)


@pytest.mark.parametrize("value", ["ü".encode(), b"\xff\xfe"], ids=["utf-8", "other"])
async def test_header_values_that_are_not_ascii(path: Path, value: bytes) -> None:
    async with Peer.on(path) as peer:
        assert (await peer.call(ECHO, HELLO, ("x-any", value))).status == Code.OK
        assert (await peer.call(ECHO, HELLO, ("x-any-bin", value))).status == Code.INTERNAL
        assert (await peer.call("/t/" + value.decode("latin-1"), HELLO)).status == 12
        assert await works(peer)


@pytest.mark.parametrize("window", [65_535, 2**31 - 1])
@pytest.mark.parametrize("size", [0, 16_384, 70_000, 3 << 20])
async def test_answers_in_windows_of_all_sizes(path: Path, window: int, size: int) -> None:
    async with Peer.on(path, {SettingCodes.INITIAL_WINDOW_SIZE: window}) as peer:
        if window > 65_535:
            peer.h2.increment_flow_control_window(window - 65_535)
        answer = await peer.call("/test.Service/Grow", bytes(Timestamp(seconds=size)))
        assert answer.status == Code.OK
        assert answer.data == framed(bytes(Message(value=bytes(size))))
        assert await works(peer)


async def test_a_window_that_changes_in_the_middle(path: Path) -> None:
    async with Peer.on(path, {SettingCodes.INITIAL_WINDOW_SIZE: 10}) as peer:
        stream_id = peer.open("/test.Service/Grow")
        peer.send(stream_id, framed(bytes(Timestamp(seconds=1_000))))
        await peer.until(lambda: len(peer.answers[stream_id].data) == 10)
        assert (await peer.call("/test.Other/X", b"")).status == Code.UNIMPLEMENTED
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5_000})
        answer = await peer.answer(stream_id)
        assert (answer.status, len(answer.data)) == (0, 5 + len(bytes(Message(value=bytes(1000)))))


@pytest.mark.parametrize("padding", [1, 100, 255])
async def test_padding_costs_no_room(path: Path, padding: int) -> None:
    """More than a window of it."""
    message = bytes(Message(value=bytes(100)))
    async with Peer.on(path) as peer:
        for _ in range(5):
            stream_id = peer.open("/test.Service/Repeat")
            for _ in range(20):
                peer.send(stream_id, framed(message), end=False, padding=padding)
            peer.send(stream_id, b"")
            assert (await peer.answer(stream_id)).data == framed(message) * 20


async def test_more_than_the_window_in_one_message(path: Path, service: Service) -> None:
    message = bytes(Message(value=bytes(9 << 20)))
    async with Peer.on(path) as peer:
        stream_id = peer.open(ECHO)
        left = memoryview(framed(message))
        while left:
            room = min(peer.h2.local_flow_control_window(stream_id), len(left), 16_384)
            if not room:
                await peer.receive()
                continue
            peer.send(stream_id, bytes(left[:room]), end=room == len(left))
            left = left[room:]
        assert (await peer.answer(stream_id)).data == framed(message)
        assert [len(each) for each in service.received] == [9 << 20]


async def test_pings_are_answered_however_many(path: Path) -> None:
    async with Peer.on(path) as peer:
        for number in range(5_000):
            peer.h2.ping(number.to_bytes(8, "big"))
        await peer.until(lambda: peer.pongs == 5_000)
        assert await works(peer)


@pytest.mark.parametrize("called", [ECHO, "/test.Service/Fail"])
async def test_a_client_that_does_not_say_that_it_has_said_all(path: Path, called: str) -> None:
    """Its side stays half open: the message is whole, and that is enough.

    A reset follows an error alone: grpclib's clients would take an answer for lost.
    """
    async with Peer.on(path) as peer:
        for _ in range(3):
            stream_id = peer.open(called)
            peer.send(stream_id, framed(HELLO if called == ECHO else b""), end=False)
            answer = await peer.answer(stream_id)
            assert answer.status == (Code.OK if called == ECHO else Code.NOT_FOUND)
            assert answer.data == (framed(HELLO) if called == ECHO else b"")
        assert await works(peer)
        resets = {each.reset for each in peer.answers.values() if each.status}
        assert resets == (set() if called == ECHO else {0})


async def test_a_reader_that_stops(path: Path, service: Service) -> None:
    """The server waits for it, without taking memory; others are served."""
    async with Peer.on(path) as peer, Peer.on(path) as other:
        peer.reads = False
        stream_id = peer.open("/test.Service/Pour")
        peer.send(stream_id, framed(bytes(Timestamp(seconds=64))))
        await peer.until(lambda: len(peer.answers[stream_id].data) == 65_535)
        assert await works(other)
        assert not peer.answers[stream_id].ended
        peer.h2.reset_stream(stream_id, 8)
        peer.flush()
        await settled(service, 1)


async def test_a_client_that_says_goodbye_gets_its_answers(
    path: Path, on_engine: str, service: Service
) -> None:
    async with Peer.on(path) as peer:
        peer.send(peer.open("/test.Service/Wait"), framed(b""))
        assert await works(peer)
        stream_id = peer.open("/test.Service/Grow")
        peer.send(stream_id, framed(bytes(Timestamp(seconds=10))))
        peer.flush()
        peer.write(b"\x00\x00\x08\x07\x00" + bytes(12))  # GOAWAY
        if on_engine == "ngh2":
            assert (await peer.answer(stream_id)).status == 0
    await settled(service, 1)


async def test_the_server_says_goodbye(path: Path, server: ApiServer) -> None:
    async with Peer.on(path) as peer:
        assert await works(peer)
        await server.drain(0.1)
        await server.close()
        await peer.closed()


async def test_broken_http2_is_one_line_in_a_while(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_sparing", connection._Sparing())
    async with Peer.on(path) as other:
        for _ in range(50):
            async with Peer.on(path) as peer:
                peer.write(b"\x00\x00\x00\x01\x00\x00\x00\x00\x00")  # HEADERS of stream 0
                peer.flush()
                await peer.closed()
        assert await works(other)
    lines = [each for each in caplog.records if each.levelno >= logging.INFO]
    assert [each.name for each in lines] == ["taskd.grpc.connection"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, 400),
    cut=st.integers(0, 12),
    noise=st.binary(max_size=24),
)
async def test_bytes_that_are_damaged_end_their_connection_at_most(
    path: Path, service: Service, server: ApiServer, at: int, cut: int, noise: bytes
) -> None:
    async with Peer.on(path) as other:
        async with Peer.on(path) as peer:
            for called in (ECHO, "/test.Service/Repeat", "/test.Service/Wait"):
                stream_id = peer.open(called, ("grpc-timeout", "1S"), ("x-any", "thing"))
                peer.send(stream_id, framed(HELLO))
            conversation = bytearray(peer.h2.data_to_send())
            conversation[at : at + cut] = noise
            peer.write(bytes(conversation))
            assert await works(other)
        assert await works(other)
    async with asyncio.timeout(10):
        while server._calls:
            await asyncio.sleep(0.01)
    await settled(service, service.begun)
