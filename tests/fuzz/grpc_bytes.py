"""gRPC: bytes at a daemon's socket. Nothing is known here of what serves it."""

from __future__ import annotations

import asyncio
import random
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from harness.daemons import Taskd, client

from fuzz.session import Session, damaged
from taskd.codec import encode
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.version.v1 import VersionStub
from taskd.proto.google.protobuf import Empty
from taskd.wire import bytes_field

__all__ = ["grpc_bytes"]

_SECONDS = 20.0
_ANSWER_SECONDS = 0.02
"""How long a case waits for more to come: many leave the daemon nothing to say."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9

# Nothing here that would start a process.
_METHODS = (
    "containerd.services.version.v1.Version/Version",
    *(f"containerd.services.containers.v1.Containers/{m}" for m in ("Get", "List", "ListStream")),
    *(f"containerd.services.containers.v1.Containers/{m}" for m in ("Create", "Update", "Delete")),
    *(f"containerd.services.content.v1.Content/{m}" for m in ("Info", "List", "Read", "Write")),
    *(f"containerd.services.content.v1.Content/{m}" for m in ("Status", "Abort", "Delete")),
    *(f"containerd.services.events.v1.Events/{m}" for m in ("Publish", "Forward", "Subscribe")),
    *(f"containerd.services.images.v1.Images/{m}" for m in ("Get", "List", "Create", "Delete")),
    *(f"containerd.services.leases.v1.Leases/{m}" for m in ("Create", "List", "Delete")),
    *(f"containerd.services.namespaces.v1.Namespaces/{m}" for m in ("Get", "List", "Create")),
    *(f"containerd.services.tasks.v1.Tasks/{m}" for m in ("Get", "List", "Wait", "Kill")),
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "taskd.v1.Journal/Read",
    "no.such.Service/Method",
)
_MESSAGES = (
    b"",
    bytes_field(1, b"one"),
    bytes_field(1, b"name==foo"),
    bytes_field(1, b"a") + bytes_field(2, b"b") + bytes_field(3, b"c"),
    encode(CreateContainerRequest(Container("c", {"k": "v"}, "", ContainerRuntime("r")))),
)


async def grpc_bytes(session: Session) -> None:
    """Whatever a connection brings, the daemon goes on for all others, without a traceback."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as folder, Taskd(Path(folder)) as daemon:
        assert daemon.process is not None
        await _version(daemon)
        descriptors = _descriptors(daemon.pid)
        for number in session.cases():
            wire = _connection(session.random)
            session.saw("ended" if await _ends(daemon, wire) else "goes on", len(wire))
            if number % 50 == 0:
                await _version(daemon)
        await _version(daemon)
        async with asyncio.timeout(_SECONDS):
            while _descriptors(daemon.pid) > descriptors + 5:
                await asyncio.sleep(0.1)
        assert daemon.process.poll() is None
        assert daemon.stop() == 0
        log = daemon.log.read_text()
        assert "Traceback" not in log, log[-5000:]


async def _version(daemon: Taskd) -> None:
    async with asyncio.timeout(_SECONDS), client(daemon.address, "fuzz") as channel:
        assert (await VersionStub(channel).version(Empty())).version


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _ends(daemon: Taskd, wire: bytes) -> bool:
    """Whether the daemon ends a connection that brings these bytes."""
    reader, writer = await asyncio.open_unix_connection(str(daemon.address))
    try:
        writer.write(wire)
        async with asyncio.timeout(_SECONDS):
            await writer.drain()
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    if not await reader.read(1 << 16):
                        return True
        return False
    except ConnectionError:
        return True
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def _connection(choose: random.Random) -> bytes:
    parts = [_frame(_SETTINGS, 0, 0, b"")]
    stream_id = 1
    for _ in range(choose.randint(0, 6)):
        parts += _call(choose, stream_id) if choose.random() < 0.7 else [_any(choose)]
        stream_id += choose.choice((2, 2, 2, 0, 1, -2))
    if choose.random() < 0.1:
        choose.shuffle(parts)
    wire = b"".join(parts)
    if choose.random() < 0.5:
        wire = damaged(choose, wire)
    return wire if choose.random() < 0.02 else _PREFACE + wire


def _call(choose: random.Random, stream_id: int) -> list[bytes]:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{choose.choice(_METHODS)}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "containerd-namespace": "fuzz",
        "grpc-timeout": choose.choice(("1S", "5m", "99999999H", "x", "-1S")),
    }
    if choose.random() < 0.3:
        headers[choose.choice(list(headers))] = choose.choice(("", "x", "\xff", "a" * 5000))
    if choose.random() < 0.2:
        headers.pop(choose.choice(list(headers)))
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    message = choose.choice(_MESSAGES)
    if choose.random() < 0.6:
        message = damaged(choose, message)
    length = len(message) if choose.random() < 0.9 else choose.choice((0, 2**32 - 1, 17 << 20))
    body = bytes((choose.choice((0, 0, 0, 0, 1, 9)),)) + struct.pack(">I", length) + message
    return [
        _frame(_HEADERS, choose.choice((4, 4, 4, 5, 0)), stream_id, block),
        _frame(_DATA, choose.choice((1, 1, 1, 0, 8)), stream_id, body * choose.choice((1, 1, 2))),
    ]


def _any(choose: random.Random) -> bytes:
    kind = choose.choice((_RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION, 2, 5, 10, 77))
    size = choose.choice((0, 4, 5, 6, 8, 12, 200))
    flags, stream_id = choose.choice((0, 1, 4, 255)), choose.choice((0, 1, 3, 2))
    return _frame(kind, flags, stream_id, choose.randbytes(size))


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3) + bytes((kind, flags))
    return head + (stream_id & 0x7FFFFFFF).to_bytes(4) + payload


def _text(text: str) -> bytes:
    """HPACK's literal text, without Huffman's code."""
    data = text.encode("latin-1")
    if len(data) < 0x7F:
        return bytes((len(data),)) + data
    rest, length = len(data) - 0x7F, b"\x7f"
    while rest >= 0x80:
        length += bytes((rest & 0x7F | 0x80,))
        rest >>= 7
    return length + bytes((rest,)) + data
