"""Children: how they are run, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.leaks import descriptors

from taskd.shim.reaper import Reaper


def start(*command: str) -> int:
    process = subprocess.Popen(command)
    process.returncode = 0  # the reaper's business
    return process.pid


async def test_how_a_child_ends(reaper: Reaper) -> None:
    before = time.time_ns()
    with reaper.starting():
        ended = await reaper.end(start("/bin/sh", "-c", "exit 42"))
    assert ended.status == 42
    assert before < ended.at < time.time_ns()
    pid = start("/bin/sleep", "1000")
    end = reaper.end(pid)
    os.kill(pid, signal.SIGTERM)
    assert (await end).status == 128 + signal.SIGTERM


async def test_a_child_that_ends_before_anybody_asks(reaper: Reaper) -> None:
    with reaper.starting():
        pid = start("/bin/true")
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
        assert (await reaper.end(pid)).status == 0


async def test_many_at_once(reaper: Reaper) -> None:
    with reaper.starting():
        ends = [reaper.end(start("/bin/sh", "-c", f"exit {number}")) for number in range(20)]
    assert [(await end).status for end in ends] == list(range(20))


async def said(file: int) -> int:
    """The number that is written to `file`."""
    async with asyncio.timeout(10):
        while not (text := os.pread(file, 100, 0)).endswith(b"\n"):
            await asyncio.sleep(0.01)
    return int(text)


@pytest.fixture
def streams() -> Iterator[tuple[int, int, int]]:
    null, out = os.open(os.devnull, os.O_RDWR), os.memfd_create("out")
    yield null, out, null
    os.close(null)
    os.close(out)


async def test_orphans_are_adopted(reaper: Reaper, streams: tuple[int, int, int]) -> None:
    with reaper.starting():
        command = "sh -c 'echo $$; sleep 0.2; exit 9' &"
        assert (await reaper.run(["/bin/sh", "-c", command], stdio=streams)).status == 0
        assert (await reaper.end(await said(streams[1]))).status == 9


async def test_run(reaper: Reaper) -> None:
    before = descriptors(os.getpid())
    done = await reaper.run(
        ["/bin/sh", "-c", "cat; echo $A >&2; exit 3"], stdin=b"hello" * 20_000, env={"A": "b"}
    )
    assert (done.status, done.output, done.errors) == (3, b"hello" * 20_000, b"b\n")
    done = await reaper.run(["/bin/sh", "-c", "kill -9 $$"])
    assert done.status == 137
    with pytest.raises(FileNotFoundError):
        await reaper.run(["/no/such"])
    assert descriptors(os.getpid()) == before


async def test_run_that_is_cancelled(reaper: Reaper, streams: tuple[int, int, int]) -> None:
    command = ["/bin/sh", "-c", "echo $$; exec sleep 1000"]
    running = asyncio.create_task(reaper.run(command, stdio=streams))
    pid = await said(streams[1])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_the_end_of_one_that_is_no_child(reaper: Reaper) -> None:
    """As those of a shim that has died; this one's parent is a shell that does not reap it."""
    reader, writer = os.pipe()
    script = "exec 3<&0; /bin/sh -c 'read line; exit 9' <&3 & echo $!; exec sleep 1000"
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=reader, stdout=subprocess.PIPE
    ) as parent:
        os.close(reader)
        assert parent.stdout
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        reaper.adopt(pid, descriptor)
        end = reaper.end(pid)
        await asyncio.sleep(0.05)
        assert not end.done()
        os.close(writer)
        async with asyncio.timeout(10):
            # As a zombie.
            assert (await end).status == 9
        parent.kill()
        # Its end is this reaper's to take note of.
        parent.returncode = 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
