"""Shims that read the standard input of ``start`` as each generation of containerd's does.

They run nothing: see `harness.fake_shim`. What they have understood is in ``read.json``, in the
bundle. Sources: ``runtime/v2/runc/manager/manager_linux.go`` of 1.6.20 and 1.7.24, ``pkg/shim`` of
2.1.9, 2.3.4 and 2.4.0-beta.0 (``ReadRuntimeOptions``, ``readBootstrapParamsFromDeprecatedFields``,
``parseBootstrapParams``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from harness.executables import write_executable
from taskd.codec import MalformedMessage, decode, encode
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, BootstrapResult
from taskd.proto.containerd.task import v3
from taskd.proto.google.protobuf import Any

__all__ = ["GENERATIONS", "install", "understood"]

GENERATIONS = ("1.6", "1.7", "2.1", "2.3", "2.4")

_RUNC = "containerd.runc.v1.Options"
_DEPRECATED = (
    "shim was started through the deprecated API but was built against the new API; if you "
    "upgraded containerd, you may need to restart the daemon"
)


def install(folder: Path, generation: str, name: str = "") -> Path:
    """Write an executable of this shim; returns its path, which serves as a runtime's name."""
    name = name or f"containerd-shim-of-{generation}"
    return write_executable(folder / name, __name__, f"run({generation!r})")


def understood(bundle: Path) -> tuple[str, str, bytes]:
    """The container's id, and the type and the value of the options, as the shim read them."""
    read = json.loads((bundle / "read.json").read_bytes())
    return read["id"], read["type"], bytes.fromhex(read["value"])


def run(generation: str) -> None:
    flags = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2], strict=False))
    if sys.argv[-1] == "delete":
        with suppress(OSError):
            Path(Path("address").read_text()).unlink()
        sys.stdout.buffer.write(encode(v3.DeleteResponse(pid=1, exit_status=137)))
        return
    id, options = _read(generation, sys.stdin.buffer.read(), flags["-id"], flags["-namespace"])  # noqa: A001
    Path("read.json").write_text(
        json.dumps({"id": id, "type": options.type_url, "value": options.value.hex()})
    )
    # From what was understood: that is how one of 2.3 comes to serve a whole namespace.
    name = f"{flags['-address']}/{flags['-namespace']}/{id}"
    path = Path("/tmp", f"fake-shim-{hashlib.sha256(name.encode()).hexdigest()[:16]}.sock")
    Path("address").write_text(str(path))
    if not _answers(path):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        if child := os.fork():
            Path("shim.pid").write_text(str(child))
        else:
            os.setsid()
            for descriptor in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            asyncio.run(_serve(listener, path, 3 if generation >= "2" else 2))
            return
    sys.stdout.buffer.write(_answer(generation, f"unix://{path}"))


async def _serve(listener: socket.socket, path: Path, version: int) -> None:
    # Late: `start` itself is quick.
    from harness.fake_shim import Task, methods
    from taskd import ttrpc

    listener.setblocking(False)
    task = Task()
    async with ttrpc.Server(
        [ttrpc.Service(f"containerd.task.v{version}.Task", methods(task))]
    ) as server:
        await server.start(listener)
        await task.shut_down.wait()
    path.unlink(missing_ok=True)


def _read(generation: str, given: bytes, id: str, namespace: str) -> tuple[str, Any]:  # noqa: A002
    """The id and the options that the shim goes on with."""
    match generation:
        case "1.6":
            return id, _options_1_6(given)
        case "1.7" | "2.1":
            return id, _options(given)
        case "2.3":
            try:
                params = decode(BootstrapParams, given)
            except MalformedMessage:
                return id, _options(given)
            return (params.instance_id, _extension(params)) if given else (id, Any())
    try:
        params = decode(BootstrapParams, given)
    except MalformedMessage as exc:
        _fail(f"{_DEPRECATED}: failed to unmarshal bootstrap parameters: {exc}")
    if not given:
        _fail(_DEPRECATED)
    if (params.instance_id, params.namespace) != (id, namespace):
        _fail(f"bootstrap parameters do not match command-line arguments: {_DEPRECATED}")
    return id, _extension(params)


def _options_1_6(given: bytes) -> Any:
    if not given:
        return Any()
    try:
        options = decode(Any, given)
    except MalformedMessage as exc:
        _fail(str(exc))
    if options.type_url.rpartition("/")[2] != _RUNC:
        _fail(f"type with url {options.type_url}: not found")
    return options


def _options(given: bytes) -> Any:
    """Whatever is wrong with them, the shim goes on without."""
    with suppress(MalformedMessage):
        options = decode(Any, given)
        if options.type_url.rpartition("/")[2] == _RUNC:
            return options
    return Any()


def _extension(params: BootstrapParams) -> Any:
    found = (each.value for each in params.extensions if each.value is not None)
    wanted = (value for value in found if value.type_url.rpartition("/")[2] == _RUNC)
    return next(wanted, Any())


def _answer(generation: str, address: str) -> bytes:
    match generation:
        case "1.6" | "1.7":
            return address.encode()
        case "2.1":
            answer = {"version": 3, "address": address, "protocol": "ttrpc"}
            return json.dumps(answer).encode()
    return encode(BootstrapResult(version=3, address=address, protocol="ttrpc"))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _fail(words: str) -> NoReturn:
    print(f"io.containerd.runc.v2: {words}", file=sys.stderr, end="")
    sys.exit(1)
