"""A shim that runs nothing, for what no real shim can be made to do.

`install` writes its executable; `start` prints what the test wants printed, and serves the task API
over the protocol that the test wants.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from grpclib.exceptions import GRPCError
from grpclib.server import Server as GrpcServer

from harness.executables import write_executable
from taskd import ttrpc
from taskd.errors import from_status
from taskd.proto.containerd.task import v3
from taskd.proto.google.protobuf import Empty, Timestamp

__all__ = ["Handlers", "Task", "install", "main", "methods"]

Handlers = dict[str, Callable[[Any, bytes], Awaitable[bytes]]]


def install(folder: Path, *, protocol: str = "ttrpc", version: int = 2, bare: bool = False) -> Path:
    """Write an executable of this shim; returns its path, which serves as a runtime's name."""
    name = f"containerd-shim-fake-{protocol}{version}{'bare' if bare else ''}"
    return write_executable(folder / name, __name__, f"run({protocol!r}, {version}, {bare})")


class Task(v3.TaskBase):
    """One container without a process: Start starts nothing, Kill ends it."""

    def __init__(self) -> None:
        self.status = 1
        self.exit_status = 0
        self.ended = asyncio.Event()
        self.shut_down = asyncio.Event()

    async def create(self, message: v3.CreateTaskRequest) -> v3.CreateTaskResponse:
        return v3.CreateTaskResponse(pid=os.getpid())

    async def start(self, message: v3.StartRequest) -> v3.StartResponse:
        self.status = 2
        return v3.StartResponse(pid=os.getpid())

    async def state(self, message: v3.StateRequest) -> v3.StateResponse:
        return v3.StateResponse(
            id=message.id, pid=os.getpid(), status=self.status, exit_status=self.exit_status
        )

    async def connect(self, message: v3.ConnectRequest) -> v3.ConnectResponse:
        return v3.ConnectResponse(shim_pid=os.getpid(), task_pid=os.getpid(), version="fake")

    async def kill(self, message: v3.KillRequest) -> Empty:
        self.status = 3
        self.exit_status = 128 + message.signal
        self.ended.set()
        return Empty()

    async def wait(self, message: v3.WaitRequest) -> v3.WaitResponse:
        await self.ended.wait()
        return v3.WaitResponse(exit_status=self.exit_status, exited_at=Timestamp(1, 2))

    async def delete(self, message: v3.DeleteRequest) -> v3.DeleteResponse:
        return v3.DeleteResponse(
            pid=os.getpid(), exit_status=self.exit_status, exited_at=Timestamp(1, 2)
        )

    async def shutdown(self, message: v3.ShutdownRequest) -> Empty:
        asyncio.get_running_loop().call_later(0.05, self.shut_down.set)
        return Empty()


async def serve(address: str, protocol: str, version: int) -> None:
    task = Task()
    if protocol == "grpc":
        server = GrpcServer([task])
        await server.start(path=address)
        await task.shut_down.wait()
        server.close()
    else:
        service = ttrpc.Service(f"containerd.task.v{version}.Task", methods(task))
        listener = ttrpc.Server([service])
        await listener.start(address)
        await task.shut_down.wait()
        await listener.aclose(grace=1)
    Path(address).unlink(missing_ok=True)


def methods(task: Task) -> Handlers:
    """The gRPC handlers as ttrpc handlers, by the methods' names on the wire."""
    found = {}
    for path, handler in task.__mapping__().items():
        name = path.rpartition("/")[2]
        python_name = {"CloseIO": "close_io", "ResizePty": "resize_pty"}.get(name, name.lower())

        def call(request_type: Any, function: Any) -> Any:
            async def answer(_: ttrpc.CallContext, payload: bytes) -> bytes:
                try:
                    return bytes(await function(request_type.parse(payload)))
                except GRPCError as exc:
                    raise from_status(exc.status.value, exc.message or "") from exc

            return answer

        found[name] = call(handler.request_type, getattr(task, python_name))
    return found


def run(protocol: str, version: int, bare: bool) -> None:
    main(lambda address: serve(address, protocol, version), protocol, version, bare)


def main(
    serving: Callable[[str], Coroutine[Any, Any, None]],
    protocol: str = "ttrpc",
    version: int = 2,
    bare: bool = False,
) -> None:
    """Do what the command line asks; `serving` is what a started shim does at its address."""
    # The bundle's folder may be deeper than a socket's path can be long.
    address = f"/tmp/fake-shim-{hashlib.sha256(bytes(Path.cwd())).hexdigest()[:16]}.sock"
    if sys.argv[-1] == "delete":
        Path(address).unlink(missing_ok=True)
        sys.stdout.buffer.write(bytes(v3.DeleteResponse(pid=1, exit_status=137)))
        return
    if os.fork():
        while not Path(address).exists():
            pass
        url = f"unix://{address}" if protocol == "ttrpc" else address
        answer = {"version": version, "address": url, "protocol": protocol}
        print(url if bare else json.dumps(answer), flush=True)
        return
    os.setsid()
    for descriptor in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    asyncio.run(serving(address))
