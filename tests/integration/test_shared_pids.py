"""Containers that share a pid namespace: their execs are ended by the shim, not by the kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest
from harness.client import RUNC, Client
from harness.containers import process, spec
from harness.daemons import Taskd, client
from harness.generations import GENERATIONS, Generation
from harness.leaks import leaving_nothing
from harness.real import need

from taskd.events import Envelope
from taskd.proto.containerd.events import TaskExit
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    ExecProcessRequest,
    KillRequest,
    StartRequest,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.proto.taskd.v1 import JournalStub, ReadRequest
from taskd.wellknown import unpack

EXECS = ("a", "b", "c")
ROUNDS = 3


def sharing(rootfs: Path) -> Any:
    found = spec(rootfs, ["/bin/sleep", "1000"])
    document = json.loads(found.value)
    document["linux"]["namespaces"].remove({"type": "pid"})
    return Any(type_url=found.type_url, value=json.dumps(document).encode())


async def exits(ask: Client, name: str) -> list[str]:
    """Who has exited, in the journal's order, once the container's own process has."""
    found = []
    everything = ReadRequest(after=0, follow=True, filters=['topic=="/tasks/exit"'])
    with anyio.fail_after(30):
        async for entry in JournalStub(ask.channel).read(everything):
            event = Envelope.from_message(entry.envelope).event
            message = unpack(event) if event else None
            if isinstance(message, TaskExit) and message.container_id == name:
                found.append(message.id)
                if len(found) > len(EXECS):
                    return found
    raise AssertionError


@pytest.mark.parametrize("generation", GENERATIONS[1:], ids=str)
async def test_the_exits_of_execs_are_told_before_their_containers(
    folder: Path, namespace: str, rootfs: Path, generation: Generation
) -> None:
    """As containerd does; 1.6's own shim and containerd have no order."""
    need("containerd-shim-runc-v2", "runc")

    with (
        Taskd(folder / "taskd", path=f"{generation.binaries()}:{os.environ['PATH']}") as daemon,
        leaving_nothing(daemon, namespace),
    ):
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            for number in range(ROUNDS):
                name = f"c{number}"
                container = Container(
                    id=name, runtime=ContainerRuntime(name=RUNC), spec=sharing(rootfs)
                )
                await ask.containers.create(CreateContainerRequest(container=container))
                await ask.tasks.create(CreateTaskRequest(container_id=name))
                await ask.tasks.start(StartRequest(container_id=name))
                for exec_id in EXECS:
                    command = process(["/bin/sleep", "1000"])
                    await ask.tasks.exec(
                        ExecProcessRequest(container_id=name, exec_id=exec_id, spec=command)
                    )
                    await ask.tasks.start(StartRequest(container_id=name, exec_id=exec_id))
                await ask.tasks.kill(KillRequest(container_id=name, signal=9))
                await ask.tasks.wait(WaitRequest(container_id=name))
                *first, last = await exits(ask, name)
                assert sorted(first) == list(EXECS)
                assert last == name
                await ask.remove(name)
