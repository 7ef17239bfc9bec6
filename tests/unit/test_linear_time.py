"""What decodes a peer's bytes takes time in proportion to them, and no more.

Each is given something small, many times over, and sixteen times as many: linear time is sixteen
times as much then, and quadratic time 256. The least of several runs is taken, in the thread's own
time and without collections of garbage, so that neither what else the machine does matters, nor how
much other tests have left in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from taskd_oci.runtime import Runtime

from taskd import codec
from taskd.errors import TaskdError
from taskd.proto.containerd.services.containers.v1 import Container
from taskd.proto.containerd.task.v2 import CreateTaskRequest, StateResponse
from taskd.proto.google.protobuf import FieldMask
from taskd.ttrpc.connection import ClientConnection, ServerConnection
from taskd.ttrpc.events import RequestReceived
from taskd.ttrpc.frames import Decoder, encode
from taskd.ttrpc.messages import Request, Response
from taskd.ttrpc.server import _by_key
from taskd.wire import VARINT, bytes_field, tag, varint

SIZE = 1 << 13
FACTOR = 16
LIMIT = 48
TRIES = 20

GROUP = varint(99 << 3 | 3) + varint(99 << 3 | 4)
UNKNOWN = bytes_field(99, b"")


def check(run: Callable[[bytes], object], unit: bytes, size: int = SIZE) -> None:
    """Raise if `run` takes more than linear time for many of `unit`."""
    count = size // len(unit)
    short = long = float("inf")
    for _ in range(TRIES):
        short = min(short, taken(run, unit * count))
        long = min(long, taken(run, unit * count * FACTOR))
        if long < LIMIT * short:
            return
    raise AssertionError(f"{FACTOR} times the size took {long / short:.0f} times as long")


def taken(run: Callable[[bytes], object], data: bytes) -> float:
    gc.disable()
    try:
        start = time.thread_time()
        run(data)
        return time.thread_time() - start
    finally:
        gc.enable()


def test_the_check_sees_quadratic_time() -> None:
    def quadratic(data: bytes) -> None:
        for _ in range(len(data) ** 2 >> 12):
            pass

    with pytest.raises(AssertionError, match="as long"):
        check(quadratic, b"x")


MESSAGES = {
    "unknown fields": (StateResponse, UNKNOWN),
    "unknown numbers": (StateResponse, varint(tag(99, VARINT)) + b"\1"),
    "groups": (StateResponse, GROUP),
    "groups in each other": (StateResponse, GROUP[:2] * 50 + GROUP[2:] * 50),
    "one field again and again": (StateResponse, bytes_field(1, b"one")),
    "pieces of a message": (StateResponse, bytes_field(10, b"\x08\x01")),
    "pieces with unknown fields": (StateResponse, bytes_field(10, UNKNOWN)),
    "pieces of pieces": (Container, bytes_field(4, bytes_field(2, UNKNOWN))),
    "a list of texts": (FieldMask, bytes_field(1, b"a")),
    "a list of messages": (CreateTaskRequest, bytes_field(3, UNKNOWN)),
    "a map's entries": (Container, bytes_field(2, bytes_field(1, b"a") + UNKNOWN)),
}


@pytest.mark.parametrize(
    "entry", [b'{"level":"error","msg":"x"}\n', b'{\n\t"level": "error"\n}\n', b" \n"]
)
def test_a_runtimes_log(tmp_path: Path, entry: bytes) -> None:
    """It grows with each exec that fails, for as long as the container lives."""
    runtime = Runtime("runc", tmp_path, tmp_path / "log.json")

    def read(text: bytes) -> None:
        runtime.log.write_bytes(text)
        runtime.last_error()

    check(read, entry, 1 << 16)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    message_type, unit = MESSAGES[name]
    # As large as it takes for copies of bytes to outweigh the rest.
    check(lambda data: codec.decode(message_type, data), unit, 4 * SIZE)


def test_a_map_with_many_keys() -> None:
    def run(data: bytes) -> None:
        entries = (bytes_field(1, b"%d" % number) for number in range(len(data) // 8))
        codec.decode(Container, b"".join(bytes_field(2, entry) for entry in entries))

    check(run, b"x")


@pytest.mark.parametrize(
    ("decode", "unit"),
    [
        (Request.decode, bytes_field(5, b"")),
        (Request.decode, bytes_field(5, bytes_field(1, b"key"))),
        (Request.decode, bytes_field(1, b"service")),
        (Response.decode, bytes_field(1, b"\x08\x01")),
        (Response.decode, bytes_field(2, b"payload")),
        (lambda data: _by_key(Request.decode(data).metadata), bytes_field(5, b"")),
    ],
)
def test_ttrpc_messages(decode: Callable[[bytes], object], unit: bytes) -> None:
    check(decode, unit)


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_frames_however_they_are_cut(size: int) -> None:
    def run(data: bytes) -> None:
        decoder = Decoder()
        for part in parts(data, size):
            for _ in decoder.feed(part):
                pass

    check(run, encode(1, 1, 0, b"hello"))


@pytest.mark.parametrize("size", [64, 4096])
def test_one_frame_in_parts(size: int) -> None:
    def run(data: bytes) -> None:
        decoder = Decoder()
        frame = encode(1, 1, 0, data)
        assert sum(1 for part in parts(frame, size) for _ in decoder.feed(part)) == 1

    check(run, b"x" * 64)


def parts(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [ServerConnection, ClientConnection])
def test_connections(make: type[ServerConnection | ClientConnection], kind: int) -> None:
    def run(data: bytes) -> None:
        connection = make()
        for event in connection.receive_data(data):
            if isinstance(event, RequestReceived) and isinstance(connection, ServerConnection):
                connection.fail(event.stream_id, TaskdError("no"))
        connection.data_to_send()

    # Streams that there are not, again and again.
    check(run, encode(1, kind, 0, b""))
