"""Standard streams through pipes of the shim's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from taskd.shim.reaper import Reaper
from taskd.shim.stdio import Pipes, Stdio, Streams

SECONDS = 10.0


@pytest.fixture
def fifos(tmp_path: Path) -> Stdio:
    for name in ("stdin", "stdout", "stderr"):
        os.mkfifo(tmp_path / name)
    return Stdio(*(str(tmp_path / name) for name in ("stdin", "stdout", "stderr")))


async def opened(stdio: Stdio, pipes: Pipes | None = None) -> Streams:
    return await Streams.open(stdio, "one", "test", Reaper(), pipes or Pipes())


def client(path: str) -> int:
    """A reader that does not wait for a writer."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


async def read_to_end(descriptor: int) -> bytes:
    os.set_blocking(descriptor, True)
    found = b""
    while data := await asyncio.to_thread(os.read, descriptor, 1 << 16):
        found += data
    os.close(descriptor)
    return found


def hold(streams: Streams) -> tuple[int, int, int]:
    """What the process has of its own, once it has been given the descriptors."""
    stdin, stdout, stderr = map(os.dup, streams.descriptors)
    return stdin, stdout, stderr


async def test_output_reaches_the_client_to_its_end(fifos: Stdio) -> None:
    out, err = client(fifos.stdout), client(fifos.stderr)
    streams = await opened(fifos)
    stdin, stdout, stderr = hold(streams)
    streams.handed()
    reading = asyncio.gather(read_to_end(out), read_to_end(err))
    text = os.urandom(1 << 20)
    await asyncio.to_thread(write_all, stdout, text)
    os.write(stderr, b"oops")
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    async with asyncio.timeout(SECONDS):
        assert await reading == [text, b"oops"]
        await streams.drained(SECONDS)
    await streams.aclose()


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


async def test_what_is_written_before_it_is_handed_over_is_nobodys(fifos: Stdio) -> None:
    out = client(fifos.stdout)
    streams = await opened(fifos)
    os.write(streams.descriptors[1], b"the runtime failed")
    await asyncio.sleep(0)
    await streams.drained(SECONDS)
    await streams.aclose()
    assert await read_to_end(out) == b""


async def test_input_ends_when_it_is_closed_and_its_clients_have_gone(fifos: Stdio) -> None:
    streams = await opened(fifos)
    stdin, *others = hold(streams)
    streams.handed()
    for text in (b"one ", b"two "):  # a client comes, and goes, and comes again
        Path(fifos.stdin).write_bytes(text)
    await asyncio.sleep(0.05)
    reading = asyncio.create_task(read_to_end(stdin))
    await asyncio.sleep(0.05)
    assert not reading.done()
    streams.close_stdin()
    async with asyncio.timeout(SECONDS):
        assert await reading == b"one two "
    for descriptor in others:
        os.close(descriptor)
    await streams.aclose()


async def test_output_waits_for_a_client_that_comes_later(fifos: Stdio) -> None:
    streams = await opened(fifos)
    descriptors = hold(streams)
    streams.handed()
    os.write(descriptors[1], b"early")
    await asyncio.sleep(0.05)
    out = client(fifos.stdout)
    for descriptor in descriptors:
        os.close(descriptor)
    async with asyncio.timeout(SECONDS):
        assert await read_to_end(out) == b"early"
    await streams.aclose()


async def test_a_file_gets_both_outputs(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/logs/output"
    streams = await opened(Stdio(stdout=url, stderr=url))
    descriptors = hold(streams)
    streams.handed()
    os.write(descriptors[1], b"out")
    os.write(descriptors[2], b"err")
    for descriptor in descriptors:
        os.close(descriptor)
    await streams.drained(SECONDS)
    assert sorted((tmp_path / "logs/output").read_text().split("out")) == ["", "err"]
    await streams.aclose()


async def test_the_owner(fifos: Stdio) -> None:
    # Only root can give a pipe to somebody else.
    owner = (1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    streams = await opened(fifos, Pipes(*owner))
    for descriptor in streams.descriptors:
        status = os.fstat(descriptor)
        assert (status.st_uid, status.st_gid) == owner
    await streams.aclose()


async def test_nothing_stays_open(fifos: Stdio) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    streams = await opened(fifos)
    await streams.aclose()
    streams = await opened(fifos)
    streams.handed()
    await streams.aclose()
    missing = Stdio(fifos.stdin, fifos.stdout, "/no/such/fifo")
    with pytest.raises(Exception, match="/no/such/fifo"):
        await opened(missing)
    assert set(Path("/proc/self/fd").iterdir()) == before
