"""Containers whose root filesystem is a snapshot, with real shims and runc."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest
from grpclib.client import Channel
from grpclib.exceptions import GRPCError
from harness import images
from harness.client import RUNC
from harness.containers import make_rootfs, spec
from harness.daemons import Taskd, client
from harness.generations import GENERATIONS, Generation
from harness.layers import LAYER, file, folder, tar
from harness.real import BOTH_SHIMS, need

from taskd import mounts
from taskd.client import Client
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.diff.v1 import ApplyRequest, DiffStub
from taskd.proto.containerd.services.introspection.v1 import IntrospectionStub, PluginsRequest
from taskd.proto.containerd.services.leases.v1 import (
    CreateRequest,
    DeleteRequest,
    LeasesStub,
)
from taskd.proto.containerd.services.mounts.v1 import ListRequest, MountsStub
from taskd.proto.containerd.services.snapshots.v1 import (
    CommitSnapshotRequest,
    PrepareSnapshotRequest,
    SnapshotsStub,
    ViewSnapshotRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.containerd.types import Descriptor, Mount

pytestmark = [pytest.mark.usefixtures("clean"), BOTH_SHIMS]

HELD = {"containerd-lease": "test"}


class Layers:
    """A snapshotter of the daemon's with layers: ``base`` has a root filesystem, ``top`` a file."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.name = name
        self.snapshots = SnapshotsStub(channel)
        self.tasks = TasksStub(channel)
        self.containers = ContainersStub(channel)

    async def prepare(self, key: str, parent: str = "") -> list[Mount]:
        request = PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        return (await self.snapshots.prepare(request, metadata=HELD)).mounts

    async def commit(self, name: str, key: str) -> None:
        request = CommitSnapshotRequest(snapshotter=self.name, name=name, key=key)
        await self.snapshots.commit(request, metadata=HELD)

    async def run(self, key: str, mounts: Sequence[Mount], script: str) -> int:
        """The exit status of a container on them."""
        container = Container(
            id=key,
            runtime=ContainerRuntime(name=RUNC),
            spec=spec(Path("rootfs"), ["/bin/sh", "-c", script], writable=True),
            snapshotter=self.name,
            snapshot_key=key if self.name else "",
        )
        await self.containers.create(CreateContainerRequest(container=container))
        await self.tasks.create(CreateTaskRequest(container_id=key, rootfs=list(mounts)))
        await self.tasks.start(StartRequest(container_id=key))
        ended = await self.tasks.wait(WaitRequest(container_id=key))
        await self.tasks.delete(DeleteTaskRequest(container_id=key))
        await self.containers.delete(DeleteContainerRequest(id=key))
        return ended.exit_status


def upper(mounts: Sequence[Mount]) -> Path:
    [mount] = mounts
    return next(
        (Path(each[9:]) for each in mount.options if each.startswith("upperdir=")),
        Path(mount.source),
    )


@pytest.fixture(params=["overlayfs", "native"])
async def layers(
    request: pytest.FixtureRequest, daemon: Taskd, namespace: str
) -> AsyncIterator[Layers]:
    need("busybox")
    async with client(daemon.address, namespace) as channel:
        leases = LeasesStub(channel)
        await leases.create(CreateRequest(id="test"))
        made = Layers(channel, request.param)
        folder = upper(await made.prepare("base-key"))
        make_rootfs(folder)
        await made.commit("base", "base-key")
        folder = upper(await made.prepare("top-key", "base"))
        (folder / "file").write_text("words\n")
        await made.commit("top", "top-key")
        yield made
        await leases.delete(DeleteRequest(id="test", sync=True))
        top = daemon.root / f"io.containerd.snapshotter.v1.{made.name}" / "snapshots"
        assert list(top.iterdir()) == []


async def test_a_container_writes_to_its_own(layers: Layers) -> None:
    one = await layers.prepare("one", "top")
    two = await layers.prepare("two", "top")
    assert (
        await layers.run(
            "one", one, 'test "$(cat /file)" = words; echo $? >/file; busybox rm /bin/ls'
        )
        == 0
    )
    assert (upper(one) / "file").read_text() == "0\n"
    # What another has written or removed is as it was.
    assert await layers.run("two", two, 'test "$(cat /file)" = words && test -e /bin/ls') == 0
    # And goes on where it was.
    await layers.commit("three", "one")
    again = await layers.prepare("four", "three")
    assert await layers.run("four", again, 'test "$(cat /file)" = 0 && test ! -e /bin/ls') == 0


async def test_a_view_is_read_only(layers: Layers) -> None:
    for parent in ("base", "top"):
        request = ViewSnapshotRequest(snapshotter=layers.name, key=f"v-{parent}", parent=parent)
        found = (await layers.snapshots.view(request, metadata=HELD)).mounts
        # An overlay without an upper directory cannot be written to; a bind mount says so.
        assert await layers.run(f"v-{parent}", found, "echo >/file") != 0
    assert await layers.run("v-again", found, "cat /file") == 0


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
async def test_ctr_runs_images_on_native(
    daemon: Taskd, namespace: str, rootfs: Path, generation: Generation
) -> None:
    async with Client(daemon.address, namespace) as connected:
        await images.put(connected, "example.org/busybox:1", rootfs)
    programs = generation.binaries()
    ctr = str(programs / "ctr") if programs else "ctr"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [ctr, "-a", str(daemon.address), "-n", namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    of = ("--snapshotter", "native", "example.org/busybox:1")
    done = run("run", "--rm", *of, "one", "/bin/sh", "-c", "cat /second; echo a >/b; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("second layer\n", "", 7)
    done = run("run", "--rm", "--read-only", *of, "two", "/bin/sh", "-c", "ls /; echo a >/b")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert "second\n" in done.stdout
    left = run("snapshots", "--snapshotter", "native", "ls").stdout.splitlines()
    assert [line.split()[-1] for line in left[1:]] == ["Committed", "Committed"]


async def test_a_root_filesystem_in_an_image_file(
    daemon: Taskd, namespace: str, rootfs: Path, tmp_path: Path
) -> None:
    """The shim is given what is left when the daemon has made a loop device and folders."""
    need("mkfs.ext4")
    image = tmp_path / "image"
    subprocess.run(["mkfs.ext4", "-q", "-d", rootfs, image, "16M"], check=True)
    scratch = daemon.root / "scratch"
    made = "X-containerd.mkdir.path="
    mounts = [
        Mount(type="loop", source=str(image)),
        Mount(type="format/ext4", source="{{ mount 0 }}", options=["ro"]),
        Mount(
            type="format/mkdir/overlay",
            source="overlay",
            options=[
                *(f"{made}{scratch}{name}:0755" for name in ("", "/upper", "/work")),
                "lowerdir={{ mount 1 }}",
                f"upperdir={scratch}/upper",
                f"workdir={scratch}/work",
            ],
        ),
    ]
    async with client(daemon.address, namespace) as channel:
        layers = Layers(channel, "")
        for number in range(2):
            assert await layers.run("one", mounts, f"echo {number} >>/numbers") == 0
        assert (scratch / "upper/numbers").read_text() == "0\n1\n"
        # What cannot be run leaves nothing either.
        mounts.append(Mount(type="nosuchfs", source="x"))
        with pytest.raises(GRPCError):
            await layers.run("one", mounts, "true")
        await layers.containers.delete(DeleteContainerRequest(id="one"))
        assert [each async for each in MountsStub(channel).list(ListRequest())] == []
    assert str(image) not in subprocess.check_output(["losetup", "--all"], text=True)


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
async def test_ctr_maps_owners(
    daemon: Taskd, namespace: str, rootfs: Path, generation: Generation
) -> None:
    """The client makes a snapshot whose owners are the mapped ones: nobody says that we can map."""
    for each in (daemon.folder.parent, daemon.folder):
        each.chmod(0o711)  # the container's root has to get through
    async with Client(daemon.address, namespace) as connected:
        await images.put(connected, "example.org/busybox:1", rootfs)
    programs = generation.binaries()
    ctr = str(programs / "ctr") if programs else "ctr"
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    # 1.6's takes it that whoever is asked by labels does it.
    asked = [()] if generation.name == "1.6" else [(), ("--remap-labels",)]
    for labels in asked:
        script = "cat /proc/self/uid_map; ls -ln /second; echo a >/b; ls -ln /b"
        command = [ctr, "-a", str(daemon.address), "-n", namespace, "run", "--rm", *maps, *labels]
        command += ["example.org/busybox:1", "one", "/bin/sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stderr, done.returncode) == ("", 0)
        mapped, *files = done.stdout.splitlines()
        assert mapped.split() == ["0", "100000", "65536"]
        assert [line.split()[2:4] for line in files] == [["0", "0"], ["0", "0"]]


async def test_layers_unpacked_without_their_parents(daemon: Taskd, namespace: str) -> None:
    """As clients since 2.3 do it, all at once, with a snapshotter that says ``rebase``.

    What a layer is applied to is told as an overlay without layers below it.
    """
    chain = {
        "one": [file("a", b"first"), folder("d"), file("d/gone", b""), file("e", b"e")],
        "two": [file("a", b"second"), file("d/.wh.gone"), file(".wh.e")],
        "three": [file("b", b"third"), folder("d"), file("d/.wh..wh..opq"), file("d/new")],
    }
    async with Client(daemon.address, namespace) as connected:
        [plugin] = (
            await IntrospectionStub(connected.channel).plugins(
                PluginsRequest(filters=["type==io.containerd.snapshotter.v1,id==overlayfs"])
            )
        ).plugins
        assert "rebase" in plugin.capabilities
        await connected.leases.create("test")
        layers = Layers(connected.channel, "overlayfs")

        async def unpack(name: str) -> None:
            [mount] = await layers.prepare(f"{name}-key")
            options = ["rw", f"upperdir={mount.source}"]
            data = tar(*chain[name])
            async with connected.leases.hold():
                digest = await connected.content.write(data)
                await DiffStub(connected.channel).apply(
                    ApplyRequest(
                        diff=Descriptor(media_type=LAYER, digest=digest, size=len(data)),
                        mounts=[Mount(type="overlay", source="overlay", options=options)],
                    ),
                    metadata=HELD,
                )

        async with anyio.create_task_group() as group:
            for name in chain:
                group.start_soon(unpack, name)
        parent = ""
        for name in chain:
            await layers.snapshots.commit(
                CommitSnapshotRequest(
                    snapshotter="overlayfs", name=name, key=f"{name}-key", parent=parent
                ),
                metadata=HELD,
            )
            parent = name
        request = ViewSnapshotRequest(snapshotter="overlayfs", key="view", parent=parent)
        [view] = (await layers.snapshots.view(request, metadata=HELD)).mounts
        target = daemon.folder / "target"
        target.mkdir()
        mounts.mount(view.type, view.source, target, view.options)
        try:
            assert {each.name for each in target.iterdir()} == {"a", "b", "d"}
            assert (target / "a").read_text() == "second"
            assert [each.name for each in (target / "d").iterdir()] == ["new"]
        finally:
            mounts.unmount_all(target)
        await connected.leases.delete("test", sync=True)
