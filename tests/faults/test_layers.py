"""What ends an unpack before its time, and what is left then: nothing but a part of the layer."""

from __future__ import annotations

import os
import random
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.exceptions import StreamTerminatedError
from harness.daemons import Taskd, client
from harness.layers import LAYER, file, tar, variants
from harness.mounts import tmpfs

from taskd import digests
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.diff import v1 as diff
from taskd.proto.containerd.types import Descriptor, Mount

NAMESPACE = "layers"
GZIP = f"{LAYER}+gzip"
SOAK = "TASKD_SOAK_CONTAINERS" in os.environ
KILLS = 20 if SOAK else 5
ENTRIES = 1_000_000 if SOAK else 20_000
SEED = 7

# A million entries take minutes, most of them for the archive.
pytestmark = [pytest.mark.timeout(1800)] if SOAK else []


@pytest.fixture(scope="module")
def layer() -> bytes:
    """It takes a while: many files, and some data."""
    noise = random.Random(SEED).randbytes(1 << 20)
    members = [file(f"{number}/{at}", noise[at:]) for at in range(4) for number in range(2)]
    small = [file(f"small/{number}", b"x" * 500) for number in range(1500)]
    return variants(tar(*members, *small))["+gzip"]


async def put(channel: Channel, data: bytes) -> str:
    async def messages():  # type: ignore[no-untyped-def]
        yield content.WriteContentRequest(action=content.WriteAction.STAT, ref="blob")
        for at in range(0, len(data), 1 << 20):
            piece = data[at : at + (1 << 20)]
            action = content.WriteAction.WRITE
            yield content.WriteContentRequest(action=action, offset=at, data=piece)
        labels = {"containerd.io/gc.root": "test"}
        action = content.WriteAction.COMMIT
        yield content.WriteContentRequest(action=action, offset=len(data), labels=labels)

    async for _ in content.ContentStub(channel).write(messages()):
        pass
    return digests.of(data)


async def apply(channel: Channel, digest: str, root: Path, **options: float) -> Descriptor | None:
    root.mkdir(exist_ok=True)
    mount = Mount(type="bind", source=str(root), options=["rbind", "rw"])
    request = diff.ApplyRequest(diff=Descriptor(media_type=GZIP, digest=digest), mounts=[mount])
    return (await diff.DiffStub(channel).apply(request, **options)).applied


def workers(daemon: Taskd) -> Iterator[int]:
    """Processes that work on layers for a daemon, of this life or an earlier one."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"taskd.layers" in command and str(daemon.state).encode() in command:
                yield int(folder.name)


def nothing_is_left(daemon: Taskd) -> None:
    deadline = time.monotonic() + 60
    while list(workers(daemon)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(workers(daemon)) == []
    assert str(daemon.state) not in Path("/proc/self/mountinfo").read_text()
    for place in (daemon.state / "diff/left", daemon.state / "diff/right"):
        assert list(place.iterdir()) == []


async def test_a_daemon_that_is_killed(tmp_path: Path, layer: bytes) -> None:
    """At any moment of an unpack and of a diff; then the same succeeds."""
    chance = random.Random(SEED)
    with Taskd(tmp_path / "t") as daemon:
        async with client(daemon.address, NAMESPACE) as channel:
            digest = await put(channel, layer)
            begin = time.monotonic()
            expected = await apply(channel, digest, tmp_path / "root")
            took = time.monotonic() - begin
        empty = Mount(type="tmpfs", source="none")
        root = Mount(type="bind", source=str(tmp_path / "root"), options=["rbind", "ro"])
        for number in range(KILLS):
            async with client(daemon.address, NAMESPACE) as channel, anyio.create_task_group() as g:

                async def call(channel: Channel = channel, number: int = number) -> None:
                    with suppress(StreamTerminatedError, ConnectionError, GRPCError):
                        if number % 3:
                            await apply(channel, digest, tmp_path / f"killed{number}")
                        else:
                            request = diff.DiffRequest(left=[empty], right=[root], ref="ref")
                            await diff.DiffStub(channel).diff(request)

                g.start_soon(call)
                await anyio.sleep(chance.uniform(0, took))
                daemon.kill()
            nothing_is_left(daemon)
            daemon.start()
        async with client(daemon.address, NAMESPACE) as channel:
            again = tmp_path / f"killed{KILLS - 1}"
            assert await apply(channel, digest, again) == expected
            assert len(list((again / "small").iterdir())) == 1500
            request = diff.DiffRequest(left=[empty], right=[root], ref="ref", media_type=LAYER)
            made = await diff.DiffStub(channel).diff(request)
            assert made.diff is not None
            assert made.diff.size > 8 << 20
            statuses = content.ListStatusesRequest()
            assert not (await content.ContentStub(channel).list_statuses(statuses)).statuses
        nothing_is_left(daemon)


async def test_a_client_that_goes_and_a_process_that_is_killed(
    tmp_path: Path, layer: bytes
) -> None:
    with Taskd(tmp_path / "t") as daemon:
        async with client(daemon.address, NAMESPACE) as channel:
            digest = await put(channel, layer)

            async def worker() -> int:
                while not (found := list(workers(daemon))):
                    await anyio.sleep(0.01)
                return found[0]

            async with anyio.create_task_group() as group:
                group.start_soon(apply, channel, digest, tmp_path / "late")
                await worker()
                group.cancel_scope.cancel()
            nothing_is_left(daemon)

            async def kill() -> None:
                os.kill(await worker(), signal.SIGKILL)

            async with anyio.create_task_group() as group:
                group.start_soon(kill)
                with pytest.raises(GRPCError, match="was ended by SIGKILL") as killed:
                    await apply(channel, digest, tmp_path / "killed")
            assert killed.value.status is Status.UNKNOWN
            assert await apply(channel, digest, tmp_path / "killed") is not None
        nothing_is_left(daemon)


async def test_a_full_disk(tmp_path: Path, layer: bytes) -> None:
    """Where the layer goes to, where its blob is made, and where the daemon has its records."""
    with (
        tmpfs(tmp_path / "small", "size=4m") as small,
        tmpfs(tmp_path / "root", "size=16m") as root,
        Taskd(tmp_path / "t", "--root", str(root / "root")) as daemon,
    ):
        async with client(daemon.address, NAMESPACE) as channel:
            digest = await put(channel, layer)
            with pytest.raises(GRPCError, match="^.*write /.*: no space left on device.*$"):
                await apply(channel, digest, small / "layer")
            full = Mount(type="bind", source=str(tmp_path / "full"), options=["rbind"])
            Path(full.source).mkdir()
            await apply(channel, digest, Path(full.source))
            empty = Mount(type="tmpfs", source="none")
            request = diff.DiffRequest(left=[empty], right=[full], media_type=LAYER)
            with pytest.raises(GRPCError, match="no space left on device") as told:
                await diff.DiffStub(channel).diff(request)
            assert told.value.status is Status.UNKNOWN
            stub = content.ContentStub(channel)
            statuses = await stub.list_statuses(content.ListStatusesRequest())
            assert not statuses.statuses
            assert list((root / "root/io.containerd.content.v1.content/ingest").iterdir()) == []
            filler = root / "filler"
            with filler.open("wb", buffering=0) as out, suppress(OSError):
                while True:
                    out.write(bytes(1 << 16))
            request.right = [Mount(type="bind", source=str(small), options=["rbind"])]
            with pytest.raises(GRPCError):
                await diff.DiffStub(channel).diff(request)
            filler.unlink()
            request.right = [Mount(type="bind", source=str(tmp_path / "t"), options=["rbind"])]
            assert (await diff.DiffStub(channel).diff(request)).diff is not None
        nothing_is_left(daemon)


async def test_a_bomb_and_very_many_files(tmp_path: Path) -> None:
    """Bounds of the configuration; and what is within them is unpacked, however much it is."""
    settings = f"[diff]\nmax_size = {ENTRIES * 600}\nmax_entries = {ENTRIES}\n"
    many = tmp_path / "many.tar"
    with tarfile.open(many, "w") as archive:
        for number in range(ENTRIES):
            archive.addfile(tarfile.TarInfo(f"{number % 256}/{number}"))
    data = many.read_bytes()
    many.unlink()
    one_more = variants(tar(file("x"))[:512] + data)["+gzip"]
    zeros = variants(tar(file("zeros", bytes(ENTRIES * 601))))["+gzip"]
    with Taskd(tmp_path / "t", settings=settings) as daemon:
        async with client(daemon.address, NAMESPACE) as channel:
            digest = await put(channel, variants(data)["+gzip"])
            assert await apply(channel, digest, tmp_path / "root") is not None
            assert sum(len(files) for _, _, files in os.walk(tmp_path / "root")) == ENTRIES
            for bad in (zeros, one_more):
                with pytest.raises(GRPCError, match="ha(s|ve) more than") as told:
                    await apply(channel, await put(channel, bad), tmp_path / "bad")
                assert told.value.status is Status.RESOURCE_EXHAUSTED
        nothing_is_left(daemon)
