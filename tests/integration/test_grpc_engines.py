"""gRPC on both HTTP/2 engines, with clients that are not ours: Go's (ctr), grpcio, h2load."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness.daemons import Containerd, Daemon, Taskd
from harness.real import need

from taskd.grpc.engine import Engine
from taskd.proto.containerd.services.containers.v1 import Container, CreateContainerRequest
from taskd.proto.containerd.services.version.v1 import VersionResponse

CONTAINERS = "/containerd.services.containers.v1.Containers"
VERSION = "/containerd.services.version.v1.Version/Version"


@pytest.fixture(scope="module", params=[each.value for each in Engine])
def taskd(request: pytest.FixtureRequest) -> Iterator[Taskd]:
    need("ctr", "h2load")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Taskd, "engine", request.param)
        with Taskd(folder, "--log-level", "debug") as running:
            assert f"HTTP/2 is {request.param}'s" in running.log.read_text()
            yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def reference() -> Iterator[Containerd]:
    need("containerd")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with Containerd(folder) as running:
        yield running
    shutil.rmtree(folder)


def ask(
    daemon: Daemon,
    path: str,
    message: bytes = b"",
    *,
    compression: grpc.Compression | None = None,
    timeout: float = 20,
) -> bytes:
    with grpc.insecure_channel(f"unix:{daemon.address}", compression=compression) as channel:
        answer: bytes = channel.unary_unary(path)(
            message, metadata=(("containerd-namespace", "ns"),), timeout=timeout
        )
        return answer


def refused(daemon: Daemon, path: str, message: bytes = b"") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(daemon, path, message)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    "path",
    [
        f"{CONTAINERS}/Fly",
        "/containerd.services.flights.v1.Flights/Fly",
    ],
)
def test_what_is_not_there(taskd: Taskd, reference: Containerd, path: str) -> None:
    assert refused(taskd, path) == refused(reference, path)


@pytest.mark.parametrize("path", ["/fly", "/"])
def test_what_is_no_name(taskd: Taskd, reference: Containerd, path: str) -> None:
    """RESOURCE_EXHAUSTED, from grpc-go as old as containerd 1.6's."""
    code, words = refused(taskd, path)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert words == refused(reference, path)[1]


def test_gzip(taskd: Taskd) -> None:
    """Debian's containerd 1.6 refuses it: no decompressor is linked into it."""
    answer = ask(taskd, VERSION, compression=grpc.Compression.Gzip)
    assert VersionResponse.parse(answer).version
    container = CreateContainerRequest(container=Container(id="x" * 5_000))
    with pytest.raises(grpc.RpcError) as caught:
        ask(taskd, f"{CONTAINERS}/Create", bytes(container), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "greater than maximum length" in caught.value.details()


def test_a_long_error_leaves_other_calls_alone(taskd: Taskd) -> None:
    with grpc.insecure_channel(f"unix:{taskd.address}") as channel:
        metadata = (("containerd-namespace", "ns"),)
        events = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(
            b"", metadata=metadata
        )
        get = channel.unary_unary(f"{CONTAINERS}/Create")
        request = CreateContainerRequest(container=Container(id="a/" * 100_000))
        with pytest.raises(grpc.RpcError) as caught:
            get(bytes(request), metadata=metadata, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert events.is_active()
        channel.unary_unary("/containerd.services.namespaces.v1.Namespaces/Create")(
            b"\x0a\x06\x0a\x04more", metadata=metadata, timeout=20
        )
        assert b"/namespaces/create" in next(events)
        events.cancel()


def test_calls_that_are_given_up(taskd: Taskd) -> None:
    """Far more than libnghttp2 takes of resets by itself."""
    metadata = (("containerd-namespace", "ns"),)
    with grpc.insecure_channel(f"unix:{taskd.address}") as channel:
        subscribe = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")
        for _ in range(15):
            opened = [subscribe(b"", metadata=metadata) for _ in range(100)]
            for call in opened:
                call.cancel()
        answer = channel.unary_unary(VERSION)(b"", timeout=20)
        assert VersionResponse.parse(answer).version
    log = taskd.log.read_text()
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if " INFO " in line]
    assert [line for line in lines if " taskd: " not in line] == []  # it serves, and stops


def load(taskd: Taskd, folder: Path, *options: str) -> str:
    body = folder / "body"
    body.write_bytes(struct.pack(">BI", 0, 0))
    done = subprocess.run(
        [
            *("h2load", "-d", str(body), "-H", "content-type: application/grpc"),
            *("-H", "te: trailers", *options, "-B", f"unix:{taskd.address}"),
            f"http://localhost{VERSION}",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout


@pytest.mark.parametrize("window", ["16", "30"])
def test_h2load(taskd: Taskd, folder: Path, window: str) -> None:
    """Windows of 64 KiB and as large as they can be."""
    out = load(taskd, folder, "-c4", "-m50", "-n2000", f"-w{window}", f"-W{window}")
    assert re.search(r"2000 done, 2000 succeeded, 0 failed, 0 errored", out), out
    assert VersionResponse.parse(ask(taskd, VERSION)).version
