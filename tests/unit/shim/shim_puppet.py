"""A shim in the test's own process, whose containers do as they are told."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import betterproto2

from taskd import ttrpc
from taskd.codec import decode, encode
from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import Empty
from taskd.shim import Container, Ended, Process
from taskd.shim.reaper import Reaper
from taskd.shim.service import TaskService

__all__ = ["Early", "Puppet", "Shim", "serving"]

_PIDS = itertools.count(4_000_000_000)  # there are no such processes
_ANSWERS: dict[str, type[betterproto2.Message]] = {
    "Create": api.CreateTaskResponse,
    "Start": api.StartResponse,
    "Delete": api.DeleteResponse,
    "State": api.StateResponse,
    "Wait": api.WaitResponse,
    "Pids": api.PidsResponse,
    "Stats": api.StatsResponse,
    "Connect": api.ConnectResponse,
}


class Puppet(Container):
    """Has no processes, only their numbers; the test says how they end."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    fail: ClassVar[dict[str, Exception]] = {}
    """What a method is to raise, by its name."""
    ends: ClassVar[dict[int, asyncio.Future[Ended]]] = {}

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.fail:
            raise self.fail[call[0]]

    async def start(self, init: Process) -> int:
        self._note("start")
        return next(_PIDS)

    async def exec(self, process: Process) -> int:
        self._note("exec", process.id)
        return next(_PIDS)

    async def kill(self, process: Process, signal: int, everyone: bool) -> None:
        self._note("kill", process.id, signal, everyone)

    async def delete(self) -> None:
        self._note("delete")

    async def abandon(self) -> None:
        self._note("abandon")

    async def ended(self) -> None:
        self._note("ended")

    async def pause(self) -> None:
        self._note("pause")

    async def resume(self) -> None:
        self._note("resume")

    async def update(self, resources: Any, annotations: Any) -> None:
        self._note("update", resources, dict(annotations))

    async def checkpoint_to(self, path: str, options: Any) -> None:
        self._note("checkpoint", path)

    async def pids(self) -> list[int]:
        return [pid for pid, end in self.ends.items() if not end.done()]

    def end(self, pid: int) -> asyncio.Future[Ended]:
        return self.ends.setdefault(pid, asyncio.get_running_loop().create_future())


class Early(Puppet):
    """Has a process when it is created, as an OCI runtime has."""

    async def create(self, init: Process) -> int:
        self._note("create")
        return next(_PIDS)

    async def start(self, init: Process) -> int:
        self._note("start")
        return init.pid


class Shim:
    """A shim, and a client of it."""

    def __init__(self, bundle: Path, service: TaskService, client: ttrpc.Client) -> None:
        self.bundle = bundle
        self.service = service
        self.client = client
        self.events: list[betterproto2.Message] = []

    async def call(self, method: str, *, version: int = 3, **fields: Any) -> Any:
        request = getattr(api, _REQUESTS.get(method, f"{method}Request"))(**{"id": "one"} | fields)
        if method == "Create":
            request.bundle = request.bundle or str(self.bundle)
        name = f"containerd.task.v{version}.Task"
        answer = await self.client.call(name, method, encode(request), timeout=10)
        return decode(_ANSWERS.get(method, Empty), answer)

    async def start(self) -> int:
        """Create it and start it; its pid."""
        await self.call("Create")
        return int((await self.call("Start")).pid)

    async def exec(self, exec_id: str = "two", *, start: bool = True) -> int:
        spec = AnyMessage(value=json.dumps({"args": ["/bin/two"]}).encode())
        await self.call("Exec", exec_id=exec_id, spec=spec)
        return int((await self.call("Start", exec_id=exec_id)).pid) if start else 0

    async def end(self, pid: int, status: int = 0, *, exec_id: str = "") -> None:
        """Let a process end, and wait until the shim has told of it."""
        Puppet.ends[pid].set_result(Ended(status, 1_700_000_000_000_000_007))
        await self.call("Wait", exec_id=exec_id)

    @property
    def told(self) -> list[str]:
        """Events: type, without Task, and whose."""
        return [
            type(event).__name__.removeprefix("Task")
            + (
                f" {whose}"
                if (whose := getattr(event, "exec_id", getattr(event, "id", "")))
                else ""
            )
            for event in self.events
        ]


def _whose(event: betterproto2.Message) -> str:
    return getattr(event, "exec_id", "") or getattr(event, "id", "")


_REQUESTS = {
    "Create": "CreateTaskRequest",
    "Exec": "ExecProcessRequest",
    "Checkpoint": "CheckpointTaskRequest",
    "Update": "UpdateTaskRequest",
    "CloseIO": "CloseIoRequest",
}


@asynccontextmanager
async def serving(kind: type[Container], bundle: Path) -> AsyncIterator[Shim]:
    """A shim for containers of `kind`."""
    (bundle / "config.json").write_text(json.dumps({"process": {"args": ["/bin/one"]}}))
    events: list[betterproto2.Message] = []

    class Recorder:
        publish = events.append

    service = TaskService(kind, "testing", Reaper(), Recorder())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    async with ttrpc.Server(service.services()) as server:
        await server.serve_connection(theirs)
        client = await ttrpc.Client.from_socket(ours)
        shim = Shim(bundle, service, client)
        shim.events = events
        yield shim
        await client.aclose()
    await service.aclose()
