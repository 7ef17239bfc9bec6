"""Lives of containers that do nothing, in the process that forks shims.

What a shim does for the first time costs it time, and pages of its own: modules that are loaded
late, plans for messages, bytecode that the interpreter rewrites as it gets to know it. All this is
done here once, before the forks, which then share it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import betterproto2

from taskd import ttrpc
from taskd.codec import decode, encode
from taskd.proto.containerd import events
from taskd.proto.containerd.runc import v1 as runc
from taskd.proto.containerd.runtime.bootstrap import v1 as bootstrap
from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Empty
from taskd.proto.io.containerd.cgroups import v1 as cgroup1
from taskd.proto.io.containerd.cgroups import v2 as cgroup2
from taskd.shim.container import Container
from taskd.shim.process import Process
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Ended, Reaper
from taskd.shim.service import TaskService

__all__ = ["rehearse"]

_ID = "rehearsal"
_LIVES = 12
"""The interpreter rewrites a function after some calls."""
_PROGRAM = "/bin/true"
_SECONDS = 5.0
"""After so long no further life is begun: on a slow machine nothing would be warm for minutes."""
_CALL_SECONDS = 60.0


class _Rehearsal(Container):
    async def create(self, init: Process) -> int:
        await self.run([_PROGRAM], stdio=init.descriptors)
        return await self.spawn(["/bin/sleep", "60"], init)

    async def start(self, init: Process) -> int:
        await self.run([_PROGRAM])
        return init.pid

    async def exec(self, process: Process) -> int:
        return await self.spawn([_PROGRAM], process)


class _Pretence(Container):
    """Has no process."""

    async def start(self, init: Process) -> int:
        return os.getpid()

    async def kill(self, process: Process, signal: int, everyone: bool) -> None:
        self._end.set_result(Ended(0, 0))

    def end(self, pid: int) -> asyncio.Future[Ended]:
        self._end: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        return self._end


def rehearse(*, again: bool = False) -> None:
    """Go through the life of a container some times; `again`, once more, and without processes.

    Raises what goes wrong; what begins late is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"process": {"args": [_PROGRAM]}}))
        os.mkfifo(f"{folder}/stdout")
        if again:
            asyncio.run(_lives(folder, _Pretence, 1))
        else:
            _messages()
            asyncio.run(_lives(folder, _Rehearsal, _LIVES))


def _messages() -> None:
    """Make and read every message that a shim may have to do with: classes are planned then."""
    for module in (api, bootstrap, events, runc, cgroup1, cgroup2):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, betterproto2.Message):
                decode(kind, encode(kind()))


async def _lives(folder: str, kind: type[Container], lives: int) -> None:
    reaper = Reaper()
    reaper.install()
    publisher = Publisher(f"{folder}/events", _ID)
    sent = asyncio.create_task(publisher.run())
    service = TaskService(kind, _ID, reaper, publisher)
    try:
        await _served(folder, service, publisher, lives)
    finally:
        sent.cancel()
        await asyncio.wait([sent])
        await publisher.aclose()
        await service.aclose()
        reaper.uninstall()


async def _served(folder: str, service: TaskService, publisher: Publisher, lives: int) -> None:
    forwarded: list[bytes] = []

    async def forward(context: ttrpc.CallContext, request: bytes) -> bytes:
        forwarded.append(request)
        return b""

    receiver = ttrpc.Service("containerd.services.events.ttrpc.v1.Events", {"Forward": forward})
    ours, theirs = socket.socketpair()
    enough = time.monotonic() + _SECONDS
    async with ttrpc.Server([receiver]) as daemon, ttrpc.Server(service.services()) as shim:
        await daemon.start(f"{folder}/events")
        await shim.serve_connection(theirs)
        client = await ttrpc.Client.from_socket(ours)
        for _ in range(lives):
            await _life(client, folder, f"{folder}/stdout")
            if time.monotonic() > enough:
                break
        await publisher.drained(1)
        await client.aclose()


async def _life(client: ttrpc.Client, bundle: str, fifo: str) -> None:
    async def call(
        method: str, request: betterproto2.Message, answer: type[betterproto2.Message] = Empty
    ) -> None:
        found = await client.call(
            "containerd.task.v2.Task", method, encode(request), timeout=_CALL_SECONDS
        )
        decode(answer, found)

    create = api.CreateTaskRequest(id=_ID, bundle=bundle, stdout=fifo, stderr=fifo)
    await call("Create", create, api.CreateTaskResponse)
    await call("Start", api.StartRequest(id=_ID), api.StartResponse)
    await call("State", api.StateRequest(id=_ID), api.StateResponse)
    await call("Connect", api.ConnectRequest(id=_ID), api.ConnectResponse)
    await call("Kill", api.KillRequest(id=_ID, signal=9))
    await call("Wait", api.WaitRequest(id=_ID), api.WaitResponse)
    await call("Delete", api.DeleteRequest(id=_ID), api.DeleteResponse)
