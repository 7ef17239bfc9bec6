from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.codec import decode
from taskd.errors import TaskdError, Unimplemented, Unknown
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapResult
from taskd.proto.containerd.task.v2 import DeleteResponse
from taskd.proto.google.protobuf import Any, Timestamp
from taskd.runtime.binary import Bootstrap, Daemon, ShimBinary, parse_bootstrap, resolve
from taskd.runtime.bundle import Bundle
from taskd.runtime.types import CreateOptions
from taskd.runtime.warm import Warm
from taskd.types import TypedValue

ADDRESS = "unix:///run/containerd/s/abc"
MESSAGE = bytes(BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc"))
JSON2 = b'{"version":2,"address":"unix:///run/containerd/s/abc","protocol":"ttrpc"}'
JSON3 = b'{"version":3,"address":"unix:///run/containerd/s/abc","protocol":"grpc"}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ADDRESS.encode(), Bootstrap(ADDRESS, "ttrpc", 2)),
        (ADDRESS.encode() + b"\n", Bootstrap(ADDRESS, "ttrpc", 2)),
        (JSON2, Bootstrap(ADDRESS, "ttrpc", 2)),
        (JSON3, Bootstrap(ADDRESS, "grpc", 3)),
        (MESSAGE, Bootstrap(ADDRESS, "ttrpc", 3)),
        (Bootstrap(ADDRESS, "grpc", 3).to_json().encode(), Bootstrap(ADDRESS, "grpc", 3)),
    ],
)
def test_every_generations_answer(answer: bytes, expected: Bootstrap) -> None:
    assert parse_bootstrap(answer) == expected


def test_a_version_from_the_future() -> None:
    with pytest.raises(Unimplemented, match=r"unsupported shim version \(4\)"):
        parse_bootstrap(JSON3.replace(b":3", b":4", 1))


NESTED = b"[" * 100 + b"]" * 100


@pytest.mark.parametrize(
    "answer",
    [
        b'{"version":2,"address":5,"protocol":"ttrpc"}',
        b'{"version":2,"address":["unix:///a"],"protocol":"ttrpc"}',
        b'{"version":2,"address":"unix:///a\\u0000b","protocol":"ttrpc"}',
        b'{"version":2,"address":"unix:///\\ud800","protocol":"ttrpc"}',
        b'{"version":2,"address":"unix:///a","protocol":{}}',
        b'{"version":"2","address":"unix:///a","protocol":"ttrpc"}',
        b'{"version":2,"address":' + NESTED + b"}",
        b"unix:///a\x00b",
        b"unix:///a\nunix:///b",
        b"unix:///\xff\xfe",
        bytes(BootstrapResult(version=3, address="unix:///a\x1b[2J", protocol="ttrpc")),
    ],
)
def test_what_is_no_address(answer: bytes) -> None:
    """What reads like JSON for people may be an address, but leads nowhere."""
    with contextlib.suppress(Unknown):
        address = parse_bootstrap(answer).address
        assert address == answer.decode()
    with pytest.raises(ValueError, match="no bootstrap parameters|Expecting|codec|Extra data"):
        Bootstrap.from_json(answer)


def test_a_document_too_deep_to_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's limit is reached by the document or, here, by whoever calls."""

    def loads(_: bytes) -> object:
        raise RecursionError

    monkeypatch.setattr("taskd.runtime.binary.json.loads", loads)
    with pytest.raises(ValueError, match="no bootstrap parameters|Expecting|codec|Extra data"):
        Bootstrap.from_json(b"{}")


@pytest.mark.parametrize("address", ["unix://\0abstract", "@abstract", "/run/s", "unix:///ä"])
def test_addresses(address: str) -> None:
    assert parse_bootstrap(address.encode()).address == address


@given(st.binary())
def test_any_answer_is_an_address_or_an_error(answer: bytes) -> None:
    with contextlib.suppress(TaskdError):
        parse_bootstrap(answer)


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_name_is_looked_up_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = program(tmp_path / "containerd-shim-kind-v9", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve("io.example.kind.v9") == shim
    assert resolve(str(shim)) == shim


@pytest.mark.parametrize("name", ["", "kind", ".kind", "../../kind.v1", "/no/such/shim"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(Unknown):
        resolve(name)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.create(tmp_path / "state", tmp_path / "root", "ns", "one", b"{}")


def shim(path: Path, bundle: Bundle, script: str) -> ShimBinary:
    daemon = Daemon("/d.sock", "/d.sock.ttrpc", "/bin/taskd")
    return ShimBinary(program(path / "shim", script), bundle, daemon)


async def test_start_is_called_as_containerd_calls_it(tmp_path: Path, bundle: Bundle) -> None:
    binary = shim(
        tmp_path,
        bundle,
        'echo "$@" > args; cat > stdin; pwd > cwd; echo "$TTRPC_ADDRESS $GRPC_ADDRESS '
        '$NAMESPACE $GOMAXPROCS $MAX_SHIM_VERSION" > env; echo unix:///a',
    )
    bootstrap = await binary.start(
        CreateOptions("kind", task_options=TypedValue("a.Type", b"options"))
    )
    assert bootstrap.address == "unix:///a"
    said = {path: (bundle.path / path).read_text() for path in ("args", "cwd", "env")}
    assert said["args"].split() == [
        *("-namespace", "ns", "-address", "/d.sock", "-publish-binary", "/bin/taskd"),
        *("-id", "one", "start"),
    ]
    assert said["cwd"].strip() == str(bundle.path)
    assert said["env"].split() == ["/d.sock.ttrpc", "/d.sock", "ns", "2", "2"]
    given = (bundle.path / "stdin").read_bytes()
    assert decode(Any, given) == Any(type_url="a.Type", value=b"options")


async def test_a_failure_is_told_in_the_shims_words(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(Unknown, match=r"^one\ntwo\n: exit status 3$"):
        await shim(tmp_path, bundle, "echo one; echo two >&2; exit 3").start(CreateOptions("kind"))


async def test_a_binary_that_cannot_be_run(tmp_path: Path, bundle: Bundle) -> None:
    binary = shim(tmp_path, bundle, "")
    binary.path.chmod(0o644)
    with pytest.raises(Unknown, match=r"^: fork/exec .*/shim: permission denied"):
        await binary.start(CreateOptions("kind"))


async def test_what_is_too_long_for_the_warm_process_is_executed(
    tmp_path: Path, bundle: Bundle
) -> None:
    binary = shim(tmp_path, bundle, "cat > stdin; echo unix:///a")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        warm = Warm()
        warm._control, warm._paths = ours, frozenset({str(binary.path.resolve())})
        options = TypedValue("a.Type", bytes(300_000))
        with anyio.fail_after(60):
            await replace(binary, warm=warm).start(CreateOptions("kind", task_options=options))
    given = decode(Any, (bundle.path / "stdin").read_bytes())
    assert given.value == options.value


async def test_delete_tells_the_exit(tmp_path: Path, bundle: Bundle) -> None:
    at = Timestamp(seconds=5, nanos=6)
    answer = tmp_path / "answer"
    answer.write_bytes(bytes(DeleteResponse(pid=7, exit_status=9, exited_at=at)))
    found = await shim(tmp_path, bundle, f'echo "$@" > args; cat {answer}').delete()
    assert (found.pid, found.status, found.exited_at) == (7, 9, 5_000_000_006)
    said = (bundle.path / "args").read_text().split()
    assert said[-5:] == ["-id", "one", "-bundle", str(bundle.path), "delete"]
