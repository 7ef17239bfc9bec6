"""Content and images by containerd's own client, and through deaths of client and daemon."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.daemons import LATE_GC, Taskd, client
from harness.real import need

from taskd import digests
from taskd.proto.containerd.services.content import v1 as content

HELLO = "hello, world\n"
DIGEST = digests.of(HELLO.encode())
NAME = "docker.io/library/tiny:1"
STAT, WRITE, COMMIT = content.WriteAction

T = TypeVar("T")
Ctr = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def daemon(folder: Path) -> Taskd:
    """A taskd that is not running yet, and does not wait long for calls when it stops."""
    settings = f'log_level = "debug"\nshutdown_timeout = "500ms"\n{LATE_GC}'
    return Taskd(folder / "taskd", settings=settings)


@pytest.fixture
def ctr(daemon: Taskd, namespace: str) -> Ctr:
    need("ctr")

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            daemon.ctr_command(*arguments, namespace=namespace),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
            check=False,
        )

    return run


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The rows of a table that ctr prints, without its heading."""
    assert done.returncode == 0, done.stderr
    return [re.split(r"\t+| {2,}", line.strip()) for line in done.stdout.splitlines()[1:]]


def blobs(daemon: Taskd) -> list[Path]:
    return list((daemon.root / "io.containerd.content.v1.content" / "blobs").glob("*/*"))


def image(file: Path) -> None:
    """A tiny image in OCI's layout."""
    parts: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def part(media_type: str, data: bytes) -> dict[str, object]:
        digest = digests.of(data)
        parts[f"blobs/{digest.replace(':', '/')}"] = data
        media_type = f"application/vnd.oci.image.{media_type}"
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("hello"))
        layer = part("layer.v1.tar", buffer.getvalue())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    settings = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    config = part("config.v1+json", json.dumps(settings).encode())
    document = {"schemaVersion": 2, "config": config, "layers": [layer]}
    manifest = part("manifest.v1+json", json.dumps(document).encode())
    manifest["annotations"] = {"org.opencontainers.image.ref.name": NAME}
    parts["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    with tarfile.open(file, "w") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_ctr_content(daemon: Taskd, ctr: Ctr, namespace: str) -> None:
    with daemon:
        ingest = ("content", "ingest", "--expected-digest", DIGEST, "--expected-size", "13", "ref")
        for _ in range(2):
            assert ctr(*ingest, stdin=HELLO).returncode == 0
        assert ctr("content", "ingest", "other", stdin=HELLO).returncode == 0
        assert [row[:2] for row in rows(ctr("content", "ls"))] == [[DIGEST, "13B"]]
        assert ctr("content", "get", DIGEST).stdout == HELLO
        assert ctr("content", "label", DIGEST, "a=b", "c=d").returncode == 0
        assert ctr("content", "label", DIGEST, "a=").stdout == "c=d\n"
        assert rows(ctr("content", "ls", "labels.c==d"))[0][-1] == "c=d"
        assert ctr("content", "ls", "-q", "labels.a").stdout == ""
        busy = ctr("namespaces", "rm", namespace)
        assert "must be empty, but it still has blobs" in busy.stderr
        assert ctr("content", "rm", DIGEST).stdout == f"{DIGEST}\n"
        assert ctr("content", "get", DIGEST).stderr.strip().endswith("not found")
        assert blobs(daemon) == []
        assert ctr("namespaces", "rm", namespace).returncode == 0


def test_ctr_content_that_is_not_as_expected(daemon: Taskd, ctr: Ctr) -> None:
    with daemon:
        wrong = digests.of(b"")
        failed = ctr("content", "ingest", "--expected-digest", wrong, "one", stdin=HELLO)
        assert f"unexpected commit digest {DIGEST}, expected {wrong}" in failed.stderr
        assert ctr("content", "ingest", "--expected-size", "14", "two", stdin=HELLO).returncode
        active = rows(ctr("content", "active"))
        assert sorted(row[:2] for row in active) == [["one", "13B"], ["two", "13B"]]
        assert rows(ctr("content", "ls")) == []
        assert blobs(daemon) == []


def test_ctr_content_of_some_size(daemon: Taskd, ctr: Ctr, folder: Path) -> None:
    """More than a connection's window, in both directions."""
    data = hashlib.shake_128(b"").digest(40 << 20)
    with daemon:
        subprocess.run(
            daemon.ctr_command("content", "ingest", "big", namespace="big"),
            input=data,
            timeout=60,
            check=True,
        )
        got = subprocess.run(
            daemon.ctr_command("content", "get", digests.of(data), namespace="big"),
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert digests.of(got.stdout) == digests.of(data)


def test_ctr_images(daemon: Taskd, ctr: Ctr, folder: Path) -> None:
    archive, exported = folder / "image.tar", folder / "exported.tar"
    image(archive)
    with daemon:
        imported = ctr("images", "import", "--no-unpack", str(archive))
        assert imported.returncode == 0, imported.stderr
        [row] = ctr("images", "ls").stdout.splitlines()[1:]
        name, media_type, digest, *_, platform, labels = row.split()
        assert (name, media_type) == (NAME, "application/vnd.oci.image.manifest.v1+json")
        assert (platform, labels) == ("linux/amd64", "-")
        assert digest in ctr("content", "ls", "-q").stdout
        assert ctr("images", "tag", NAME, "tiny:2").stdout == "tiny:2\n"
        again = ctr("images", "tag", NAME, "tiny:2")
        assert 'image "tiny:2": already exists' in again.stderr
        assert ctr("images", "tag", "--force", NAME, "tiny:2").returncode == 0
        assert ctr("images", "label", "tiny:2", "a=b").stdout == "a=b\n"
        assert ctr("images", "ls", "-q", "labels.a==b").stdout == "tiny:2\n"
        assert ctr("images", "export", str(exported), "tiny:2").returncode == 0
        with tarfile.open(exported) as found:
            assert "index.json" in found.getnames()
        assert ctr("images", "rm", "tiny:2").stdout == "tiny:2\n"
        assert "image not found" in ctr("images", "rm", "tiny:2").stderr
        assert ctr("images", "ls", "-q").stdout == f"{NAME}\n"
        # What it consists of can be had as content.
        for digest in ctr("content", "ls", "-q").stdout.split():
            assert ctr("content", "get", digest).returncode == 0


async def write(channel: Channel, *messages: content.WriteContentRequest) -> int:
    """Send these messages of one call; returns the offset it has come to."""
    answers = [answer async for answer in content.ContentStub(channel).write(messages)]
    return answers[-1].offset


async def opened(begin: Callable[[], Awaitable[T]]) -> T:
    """Begin a write, again as Go's ``content.OpenWriter``: the last writer may yet be leaving."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await begin()
            except GRPCError as exc:
                if exc.status is not Status.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_write_goes_on_after_a_restart(daemon: Taskd, namespace: str, end: str) -> None:
    data = hashlib.shake_128(b"").digest(5 << 20)
    half = len(data) // 2
    begun = asyncio.Event()

    async def messages() -> AsyncIterator[content.WriteContentRequest]:
        yield content.WriteContentRequest(action=WRITE, ref="ref", data=data[:half])
        await begun.wait()

    with daemon:
        async with client(daemon.address, namespace) as channel:
            answers = content.ContentStub(channel).write(messages())
            assert (await anext(answers)).offset == half
            if end == "kill":
                daemon.kill()
            else:
                await asyncio.to_thread(daemon.stop)
    assert blobs(daemon) == []
    with daemon:
        async with client(daemon.address, namespace) as channel:
            stub = content.ContentStub(channel)
            assert [each async for each in stub.list(content.ListContentRequest())] == []
            first = content.WriteContentRequest(action=STAT, ref="ref")
            rest = content.WriteContentRequest(
                action=COMMIT, data=data[half:], offset=half, expected=digests.of(data)
            )
            assert await write(channel, first, rest) == len(data)
            read = stub.read(content.ReadContentRequest(digest=digests.of(data)))
            assert b"".join([each.data async for each in read]) == data


async def test_a_client_that_goes_away_leaves_its_write(daemon: Taskd, namespace: str) -> None:
    async def messages() -> AsyncIterator[content.WriteContentRequest]:
        yield content.WriteContentRequest(action=WRITE, ref="ref", data=b"half")
        await asyncio.Event().wait()

    async def begin() -> int:
        answers.append(content.ContentStub(channel).write(messages()))
        return (await anext(answers[-1])).offset

    answers: list[AsyncIterator[content.WriteContentResponse]] = []
    with daemon:
        for turn in range(20):
            async with client(daemon.address, namespace) as channel:
                assert await opened(begin) == 4, turn
                # The connection ends, with the call.
        async with client(daemon.address, namespace) as channel:
            last = content.WriteContentRequest(action=COMMIT, ref="ref", offset=4)
            assert await opened(lambda: write(channel, last)) == 4


async def test_writers_side_by_side(daemon: Taskd, namespace: str) -> None:
    """Fifty at once, and calls of others are answered meanwhile."""
    data = hashlib.shake_128(b"").digest(1 << 20)

    async def one(channel: Channel, number: int) -> None:
        ref, own = f"ref{number}", b"%d" % number + data
        commit = content.WriteContentRequest(
            action=COMMIT, ref=ref, data=own, total=len(own), expected=digests.of(own)
        )
        assert await write(channel, commit) == len(own)

    with daemon:
        async with client(daemon.address, namespace) as channel:
            writing = asyncio.gather(*[one(channel, number) for number in range(50)])
            slowest = 0.0
            async with client(daemon.address, namespace) as other:
                while not writing.done():
                    before = time.monotonic()
                    await content.ContentStub(other).list_statuses(content.ListStatusesRequest())
                    slowest = max(slowest, time.monotonic() - before)
                    await asyncio.sleep(0.01)
            await writing
        assert len(blobs(daemon)) == 50
        assert slowest < 5
