"""Checkpoint and restore with real CRIU."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.real import need

from taskd.proto.containerd.runc.v1 import CheckpointOptions, Options
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.wellknown import pack, to_any

RUNTIME = ContainerRuntime(name="io.containerd.runc.v2")
COUNT = "n=0; while :; do n=$((n + 1)); echo $n > /count/n; sleep 0.02; done"


@pytest.fixture
def daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taskd]:
    """A taskd whose runc finds a CRIU that works here."""
    need("containerd-shim-runc-v2", "runc")
    script = Path(__file__).parents[1] / "harness/criu.sh"
    found = subprocess.run(["sh", str(script)], check=True, capture_output=True, text=True)
    monkeypatch.setenv("PATH", found.stdout.strip(), prepend=":")
    with Taskd(folder / "taskd") as running:
        yield running


async def count(folder: Path) -> int:
    """What the container has counted to, once it has gone on."""
    file = folder / "n"
    before = file.read_text() if file.exists() else ""
    with anyio.fail_after(10):
        while not file.exists() or file.read_text() in ("", before):
            await anyio.sleep(0.01)
    return int(file.read_text() or 0)


@pytest.mark.usefixtures("clean")
async def test_a_counter_goes_on_where_it_stopped(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    counted, image = folder / "count", folder / "image"
    counted.mkdir()
    (rootfs / "count").mkdir(exist_ok=True)
    # To checkpoint a network namespace, CRIU needs iptables.
    arguments = ["/bin/sh", "-c", COUNT]
    document = spec(rootfs, arguments, binds={"/count": counted}, host_network=True)
    async with client(daemon.address, namespace) as channel:
        tasks, containers = TasksStub(channel), ContainersStub(channel)
        container = Container(id="one", runtime=RUNTIME, spec=document)
        await containers.create(CreateContainerRequest(container=container))
        await tasks.create(CreateTaskRequest(container_id="one"))
        await tasks.start(StartRequest(container_id="one"))
        while await count(counted) < 20:
            pass
        options = CheckpointOptions(exit=True, image_path=str(image))
        await tasks.checkpoint(
            CheckpointTaskRequest(container_id="one", options=to_any(pack(options)))
        )
        await tasks.wait(WaitRequest(container_id="one"))
        await tasks.delete(DeleteTaskRequest(container_id="one"))
        stopped_at = int((counted / "n").read_text())

        options = Options(criu_image_path=str(image))
        await tasks.create(CreateTaskRequest(container_id="one", options=to_any(pack(options))))
        await tasks.start(StartRequest(container_id="one"))
        went_on_at = await count(counted)
        assert stopped_at < went_on_at < stopped_at + 200
        await tasks.kill(KillRequest(container_id="one", signal=9))
        await tasks.wait(WaitRequest(container_id="one"))
        await tasks.delete(DeleteTaskRequest(container_id="one"))
        await containers.delete(DeleteContainerRequest(id="one"))


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), "invalid task checkpoint option for io.containerd.runc.v2"),
        (Any(type_url="no.such.Type"), "type with url no.such.Type: not found"),
    ],
)
async def test_options_of_a_wrong_type(
    daemon: Taskd, namespace: str, rootfs: Path, options: Options | Any, words: str
) -> None:
    message = options if isinstance(options, Any) else to_any(pack(options))
    async with client(daemon.address, namespace) as channel:
        tasks, containers = TasksStub(channel), ContainersStub(channel)
        document = spec(rootfs, ["/bin/sleep", "1000"])
        container = Container(id="one", runtime=RUNTIME, spec=document)
        await containers.create(CreateContainerRequest(container=container))
        await tasks.create(CreateTaskRequest(container_id="one"))
        with pytest.raises(GRPCError) as caught:
            await tasks.checkpoint(CheckpointTaskRequest(container_id="one", options=message))
        assert (caught.value.status, caught.value.message) == (Status.UNKNOWN, words)
        await tasks.kill(KillRequest(container_id="one", signal=9))
        await tasks.delete(DeleteTaskRequest(container_id="one"))
        await containers.delete(DeleteContainerRequest(id="one"))
