"""Checkpoint and restore with real CRIU."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.generations import criu
from harness.real import BOTH_SHIMS, need

from taskd import digests
from taskd.client import connect
from taskd.client.spec import merged
from taskd.codec import decode
from taskd.proto.containerd.runc.v1 import CheckpointOptions, Options
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.content.v1 import (
    ContentStub,
    ReadContentRequest,
    WriteAction,
    WriteContentRequest,
)
from taskd.proto.containerd.services.images.v1 import ImagesStub, ListImagesRequest
from taskd.proto.containerd.services.leases.v1 import CreateRequest, LeasesStub
from taskd.proto.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.containerd.types import Descriptor
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.tasks.archive import CHECKPOINT, CONFIG
from taskd.wellknown import pack, to_any

pytestmark = BOTH_SHIMS

RUNTIME = ContainerRuntime(name="io.containerd.runc.v2")
# Written over in place: the file is never empty, and of the size that CRIU has seen.
COUNT = "n=0; while :; do n=$((n + 1)); printf %08d $n 1<>/count/n; sleep 0.02; done"


@pytest.fixture
def daemon(folder: Path, monkeypatch: pytest.MonkeyPatch, runc_shim: None) -> Iterator[Taskd]:
    """A taskd whose runc finds a CRIU that works here."""
    need("containerd-shim-runc-v2", "runc")
    monkeypatch.setenv("PATH", str(criu()), prepend=":")
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


class Counter:
    """A container that counts, and can be restored from how far it came."""

    def __init__(self, channel: Channel, rootfs: Path, counted: Path) -> None:
        self.tasks, self.containers = TasksStub(channel), ContainersStub(channel)
        self.counted = counted
        self.stopped_at: int | None = None
        counted.mkdir()
        (rootfs / "count").mkdir(exist_ok=True)
        # To checkpoint a network namespace, CRIU needs iptables.
        arguments = ["/bin/sh", "-c", COUNT]
        self.spec = spec(rootfs, arguments, binds={"/count": counted}, host_network=True)

    async def run(self) -> None:
        container = Container(id="one", runtime=RUNTIME, spec=self.spec)
        await self.containers.create(CreateContainerRequest(container=container))
        await self.tasks.create(CreateTaskRequest(container_id="one"))
        await self.tasks.start(StartRequest(container_id="one"))
        while await count(self.counted) < 20:
            pass

    async def stopped(self) -> None:
        """Remove the task that has exited."""
        await self.tasks.wait(WaitRequest(container_id="one"))
        await self.tasks.delete(DeleteTaskRequest(container_id="one"))

    async def goes_on(self, **how: Any) -> None:
        """Restored, it must count on from where it was when it was written down."""
        if self.stopped_at is None:
            self.stopped_at = int((self.counted / "n").read_text())
        stopped_at = self.stopped_at
        await self.tasks.create(CreateTaskRequest(container_id="one", **how))
        await self.tasks.start(StartRequest(container_id="one"))
        went_on_at = await count(self.counted)
        assert stopped_at < went_on_at < stopped_at + 200

    async def end(self) -> None:
        await self.tasks.kill(KillRequest(container_id="one", signal=9))
        await self.stopped()

    async def remove(self) -> None:
        await self.containers.delete(DeleteContainerRequest(id="one"))


def leftovers(daemon: Taskd) -> list[Path]:
    """Folders of checkpoints that nobody needs any more."""
    return [*(daemon.root / "checkpoints").iterdir(), *daemon.root.glob("io.*/*/*/checkpoint")]


@pytest.mark.usefixtures("clean")
async def test_a_counter_goes_on_where_it_stopped(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    image = folder / "image"
    async with client(daemon.address, namespace) as channel:
        counter = Counter(channel, rootfs, folder / "count")
        await counter.run()
        options = CheckpointOptions(exit=True, image_path=str(image))
        answer = await counter.tasks.checkpoint(
            CheckpointTaskRequest(container_id="one", options=to_any(pack(options)))
        )
        assert not answer.descriptors
        await counter.stopped()
        await counter.goes_on(options=to_any(pack(Options(criu_image_path=str(image)))))
        await counter.end()
        await counter.remove()


@pytest.mark.usefixtures("clean")
async def test_a_counter_goes_on_from_the_content_store(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    async with client(daemon.address, namespace) as channel:
        counter = Counter(channel, rootfs, folder / "count")
        await counter.run()
        options = to_any(pack(CheckpointOptions(exit=True)))
        # Without a lease, garbage collection would take it.
        await LeasesStub(channel).create(CreateRequest(id="mine"))
        answer = await counter.tasks.checkpoint(
            CheckpointTaskRequest(container_id="one", options=options),
            metadata={"containerd-lease": "mine"},
        )
        await counter.stopped()
        checkpoint, config = answer.descriptors
        assert (checkpoint.media_type, config.media_type) == (CHECKPOINT, CONFIG)
        read = ContentStub(channel).read(ReadContentRequest(digest=config.digest))
        assert decode(AnyMessage, b"".join([piece.data async for piece in read])) == counter.spec
        assert not leftovers(daemon)

        for _ in range(2):  # as often as one likes
            await counter.goes_on(checkpoint=checkpoint)
            await counter.end()
        assert not leftovers(daemon)

        # Created, and then deleted before it was started.
        await counter.tasks.create(CreateTaskRequest(container_id="one", checkpoint=checkpoint))
        assert leftovers(daemon)
        await counter.tasks.delete(DeleteTaskRequest(container_id="one"))
        assert not leftovers(daemon)
        await counter.remove()


@pytest.mark.usefixtures("clean")
async def test_ctr_makes_an_image_of_a_checkpoint(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    async with client(daemon.address, namespace) as channel:
        counter = Counter(channel, rootfs, folder / "count")
        await counter.run()
        daemon.ctr("tasks", "checkpoint", "--exit", "one", namespace=namespace)
        await counter.stopped()
        (image,) = (await ImagesStub(channel).list(ListImagesRequest())).images
        read = ContentStub(channel).read(ReadContentRequest(digest=image.target.digest))
        index = json.loads(b"".join([piece.data async for piece in read]))
        (found,) = [each for each in index["manifests"] if each["mediaType"] == CHECKPOINT]
        checkpoint = Descriptor(CHECKPOINT, found["digest"], found["size"])
        await counter.goes_on(checkpoint=checkpoint)
        await counter.end()
        await counter.remove()
        assert not leftovers(daemon)


def _tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc"
        archive.addfile(member)
    return out.getvalue()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 5000, "invalid header"),
        (_tar("../../up"), "../../up: not a plain file"),
        (_tar("/absolute"), "/absolute: not a plain file"),
        (_tar("link", tarfile.SYMTYPE), "link: not a plain file"),
        (_tar("device", tarfile.CHRTYPE), "device: not a plain file"),
    ],
    ids=["no tar", "up", "absolute", "symlink", "device"],
)
async def test_content_that_is_no_checkpoint(
    daemon: Taskd, namespace: str, rootfs: Path, data: bytes, words: str
) -> None:
    checkpoint = Descriptor(CHECKPOINT, digests.of(data), len(data))
    async with client(daemon.address, namespace) as channel:
        tasks, containers = TasksStub(channel), ContainersStub(channel)
        root = {"containerd.io/gc.root": "now"}  # else garbage collection would take it
        write = WriteContentRequest(action=WriteAction.COMMIT, ref="bad", data=data, labels=root)
        async for _ in ContentStub(channel).write([write]):
            pass
        container = Container(id="one", runtime=RUNTIME, spec=spec(rootfs, ["/bin/true"]))
        await containers.create(CreateContainerRequest(container=container))
        with pytest.raises(GRPCError) as caught:
            await tasks.create(CreateTaskRequest(container_id="one", checkpoint=checkpoint))
        assert caught.value.status is Status.INVALID_ARGUMENT
        assert words in caught.value.message
        assert not leftovers(daemon)
        await containers.delete(DeleteContainerRequest(id="one"))


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), "invalid task checkpoint option for io.containerd.runc.v2"),
        (AnyMessage(type_url="no.such.Type"), "type with url no.such.Type: not found"),
    ],
)
async def test_options_of_a_wrong_type(
    daemon: Taskd, namespace: str, rootfs: Path, options: Options | AnyMessage, words: str
) -> None:
    message = options if isinstance(options, AnyMessage) else to_any(pack(options))
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


@pytest.mark.usefixtures("clean")
async def test_with_the_client_library(
    daemon: Taskd, namespace: str, rootfs: Path, folder: Path
) -> None:
    """Into a folder, and into the content store; another container goes on from there."""
    counted = folder / "count"
    counted.mkdir()
    (rootfs / "count").mkdir(exist_ok=True)
    how: Any = {"mounts": [f"{counted}:/count"], "network": "host", "output": "none"}
    # CRIU wants to find the mounts of others again: without files of the host's.
    how["amend"] = lambda spec: merged(
        spec,
        {"mounts": [each for each in spec["mounts"] if not each["destination"].startswith("/etc")]},
    )
    command = ["/bin/sh", "-c", COUNT]
    async with connect(daemon.address, namespace) as client, client.leases.hold():
        async with client.run(rootfs, command, **how) as first:
            await count(counted)
            assert await first.checkpoint(folder / "image") == []
            descriptors = await first.checkpoint(exit=True)
            await first.wait(10)
        stopped_at = int((counted / "n").read_text())
        (stored,) = (each for each in descriptors if each.media_type == CHECKPOINT)
        for checkpoint in (folder / "image", stored):
            async with client.run(rootfs, command, checkpoint=checkpoint, **how):
                assert 0 < await count(counted) < stopped_at + 200
