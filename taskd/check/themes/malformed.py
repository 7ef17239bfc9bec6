"""What is no ttrpc, on a connection of its own: the shim and its container go on.

Source: ttrpc's ``PROTOCOL.md`` and ``server.go``.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.registry import Failed, NotApplicable, Theme, running
from taskd.check.shim import Task
from taskd.codec import encode as encode_message
from taskd.errors import Code, TaskdError
from taskd.proto.containerd.task.v2 import ConnectRequest
from taskd.proto.containerd.v1.types import Status
from taskd.ttrpc import address
from taskd.ttrpc.frames import MAX_PAYLOAD, Decoder, Frame, FrameType, encode
from taskd.ttrpc.messages import Request, Response

theme = Theme("malformed ttrpc", running)

_ANSWER_SECONDS = 5.0


class _Raw:
    """A connection on which anything can be said."""

    def __init__(self, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._case = case
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def send(self, what: str, data: bytes) -> None:
        self._case.note(f"sending {what}", "")
        with suppress(ConnectionError):
            self._writer.write(data)

    async def frame(self) -> Frame | None:
        """The next frame; None if the shim hangs up. Raises `Failed` if neither comes."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while not self._frames:
                    with suppress(ConnectionError):
                        if data := await self._reader.read(65536):
                            self._frames += [
                                each for each in self._decoder.feed(data) if isinstance(each, Frame)
                            ]
                            continue
                    return None
        except TimeoutError:
            called = self._case.calls[-1]
            raise Failed(called, "an answer", f"none in {_ANSWER_SECONDS:g} s") from None
        return self._frames.pop(0)

    async def response(self, stream_id: int) -> Response:
        """The answer on that stream. Raises `Failed` if another comes, or none."""
        frame = await self.frame()
        called = self._case.calls[-1]
        if frame is None:
            raise Failed(called, "an answer", "the end of the connection")
        self._case.equal(
            called, (stream_id, int(FrameType.RESPONSE)), (frame.stream_id, frame.type)
        )
        response = Response.decode(frame.payload)
        self._case.note("the answer", f"status {response.code}, {response.message}")
        return response

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def _raw(case: Case) -> AsyncIterator[tuple[Task, _Raw]]:
    """A container that runs, and a connection; in the end the shim must be as it was."""
    task = case.container
    if task.shim.bootstrap.protocol != "ttrpc":
        raise NotApplicable(f"it speaks {task.shim.bootstrap.protocol}")
    sock = await address.dial(task.shim.bootstrap.address, timeout=_ANSWER_SECONDS)
    raw = _Raw(case, *await asyncio.open_unix_connection(sock=sock))
    try:
        yield task, raw
    finally:
        await raw.close()
    case.true(task.shim.alive, "the malformed call", "a shim that goes on", "its end")
    state = await task.state()
    case.equal("State on another connection", Status.RUNNING, state.status)
    connection = await case.connect(task.shim.bootstrap)
    state = await task.state(connection=connection)
    await connection.aclose()
    case.equal("State on a new connection", Status.RUNNING, state.status)


def _request(task: Task, stream_id: int, method: str = "Connect", **changed: object) -> bytes:
    request = Request(task.shim.service, method, encode_message(ConnectRequest(id=task.id)))
    for name, value in changed.items():
        setattr(request, name, value)
    return encode(stream_id, FrameType.REQUEST, 0, request.encode())


@theme.check("random bytes")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("random bytes", os.urandom(4096))


@theme.check("text, as of HTTP")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("an HTTP request", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@theme.check("a frame that is too long: refused, and the connection goes on or ends")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        length = MAX_PAYLOAD + 1
        header = struct.pack(">IIBB", length, 1, FrameType.REQUEST, 0)
        raw.send(f"a frame of {length} bytes", header + bytes(length))
        frame = await raw.frame()
        if frame is None:
            return
        code = Response.decode(frame.payload).code
        case.equal("a frame that is too long", Code.RESOURCE_EXHAUSTED, code)
        raw.send("a call after it", _request(task, 3))
        case.equal("a call after it", Code.OK, (await raw.response(3)).code)


@theme.check("a header that promises 4 GiB, and no more")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("a header", struct.pack(">IIBB", 0xFFFFFFFF, 1, FrameType.REQUEST, 0))


@theme.check("half a frame, and the end")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("half a frame", _request(task, 1)[:-5])


@theme.check("half a header, and the end")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("half a header", b"\0\0\0")


@theme.check("a request that is no message: an error, or the end of the connection")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("a request that is no message", encode(1, FrameType.REQUEST, 0, b"\xff" * 50))
        frame = await raw.frame()
        if frame is not None:
            code = Response.decode(frame.payload).code
            case.true(code != Code.OK, case.calls[-1], "an error", "OK")


@theme.check("a call whose message is none is refused")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("State with a bad message", _request(task, 1, "State", payload=b"\xff" * 50))
        code = (await raw.response(1)).code
        case.true(code != Code.OK, "State with a bad message", "an error", "OK")
        raw.send("a call after it", _request(task, 3))
        case.equal("a call after it", Code.OK, (await raw.response(3)).code)


@theme.check("an unknown service is UNIMPLEMENTED")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("a call of no.such.Service", _request(task, 1, service="no.such.Service"))
        code = (await raw.response(1)).code
        case.equal("a call of no.such.Service", Code.UNIMPLEMENTED, code)


@theme.check("an unknown method is UNIMPLEMENTED")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("a call of NoSuchMethod", _request(task, 1, "NoSuchMethod"))
        code = (await raw.response(1)).code
        case.equal("a call of NoSuchMethod", Code.UNIMPLEMENTED, code)


@theme.check("fields that it does not know are passed over")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        payload = encode_message(ConnectRequest(id=task.id)) + b"\xfa\x3f\x03new"
        raw.send("Connect with a new field", _request(task, 1, payload=payload))
        case.equal("Connect with a new field", Code.OK, (await raw.response(1)).code)


@theme.check("a stream's id that is even is refused")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("a call on stream 2", _request(task, 2))
        frame = await raw.frame()
        if frame is not None:
            code = Response.decode(frame.payload).code
            case.true(code != Code.OK, "a call on stream 2", "an error", "OK")


@theme.check("a stream's id that was used before is refused, or ends the connection")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("a call on stream 3", _request(task, 3))
        case.equal("a call on stream 3", Code.OK, (await raw.response(3)).code)
        raw.send("a call on stream 1 after that", _request(task, 1))
        frame = await raw.frame()
        if frame is not None:
            code = Response.decode(frame.payload).code
            if code == Code.OK:
                case.known(differences.STREAM_IDS)


@theme.check("an answer from the client")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("a response", encode(1, FrameType.RESPONSE, 0, Response(payload=b"x").encode()))


@theme.check("a frame of an unknown type")
async def _(case: Case) -> None:
    async with _raw(case) as (_, raw):
        raw.send("a frame of type 9", struct.pack(">IIBB", 4, 1, 9, 0) + b"abcd")


@theme.check("data on a stream that there is not", spoils=True)
async def _(case: Case) -> None:
    data = encode(7, FrameType.DATA, 0, b"abcd")
    try:
        async with _raw(case) as (task, raw):
            raw.send("data on stream 7", data)
    except Failed:
        if not await task.shim.has_panicked():
            raise
        case.known(differences.DATA_PANIC)


@theme.check("a call whose client hangs up at once")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        raw.send("State", _request(task, 1, "State"))


@theme.check("a call with a deadline that is over")
async def _(case: Case) -> None:
    # Whether it is answered does not matter: its client has given it up.
    async with _raw(case) as (task, raw):
        raw.send("Wait for 0.1 s", _request(task, 1, "Wait", timeout_nano=10**8))
        await asyncio.sleep(0.3)
        raw.send("a call after it", _request(task, 3))
        while (frame := await raw.frame()) is not None and frame.stream_id != 3:
            pass
        case.true(frame, "a call after it", "an answer", "the end of the connection")


@theme.check("a byte at a time")
async def _(case: Case) -> None:
    async with _raw(case) as (task, raw):
        for byte in _request(task, 1):
            raw.send("a call, a byte at a time", bytes([byte]))
            await asyncio.sleep(0)
        case.equal("a call, a byte at a time", Code.OK, (await raw.response(1)).code)


@theme.check("ids of containers that are strange are refused")
async def _(case: Case) -> None:
    task = case.container
    for name in ("", "../one", "x" * 1000, "one\0", "ünï"):
        request_error = ""
        try:
            await Task.call(_named(task, name), "State")
        except TaskdError as exc:
            request_error = exc.code.name
        case.true(request_error, f"State of {name[:20]!r}", "an error", "OK")
    case.equal("State", Status.RUNNING, (await task.state()).status)


def _named(task: Task, name: str) -> Task:
    other = Task(task.shim, task.bundle)
    other.id = name
    return other
