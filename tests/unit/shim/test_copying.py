"""Copying between descriptors: what waits, what is held, what is dropped, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.leaks import descriptors

from taskd.shim.copying import Copy

SECONDS = 10.0
MUCH = 300_000


class Pipe:
    """Two ends; what of them a `Copy` gets is `dup`ed, so that it closes its own."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def read(self) -> bytes:
        """All that is there now."""
        found = b""
        try:
            while data := os.read(self.reader, 1 << 20):
                found += data
        except BlockingIOError:
            pass
        return found

    @property
    def ended(self) -> bool:
        try:
            return os.read(self.reader, 1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    """What is copied from, and to."""
    pair = Pipe(), Pipe()
    yield pair
    for pipe in pair:
        pipe.close()


def copying(source: Pipe, target: Pipe) -> Copy:
    """The writing end of the source stays open, as with a process that has gone and a child."""
    return Copy(os.dup(source.reader), os.dup(target.writer), "it")


async def write(pipe: Pipe, data: bytes) -> None:
    """Write as a process does, which waits."""
    while data:
        try:
            data = data[os.write(pipe.writer, data) :]
        except BlockingIOError:
            await asyncio.sleep(0)


async def read(pipe: Pipe, size: int) -> bytes:
    found = b""
    async with asyncio.timeout(SECONDS):
        while len(found) < size:
            found += pipe.read()
            await asyncio.sleep(0)
    return found


# --- the end of a process -------------------------------------------------------------------


async def test_a_client_that_reads_has_all_when_it_has_settled(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    text = os.urandom(MUCH)
    found = b""

    async def client() -> None:
        nonlocal found
        while True:
            found += target.read()
            await asyncio.sleep(0)

    reading = asyncio.create_task(client())
    await write(source, text)
    # The pipe is full, and more is on its way.
    await copy.settle()
    assert found + target.read() == text
    reading.cancel()
    copy.stop()


@pytest.mark.parametrize("size", [1, 65536, 65537, 200_000])
async def test_a_client_that_does_not_read_is_not_waited_for(
    pipes: tuple[Pipe, Pipe], size: int
) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    text = os.urandom(size)
    if size < 150_000:
        await write(source, text)
    else:  # more than both pipes hold
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await write(source, text)
        text = text[: 2 * 65536]
    async with asyncio.timeout(SECONDS):
        await copy.settle()
    assert await read(target, len(text)) == text
    copy.stop()


async def test_one_who_goes_on_writing_is_not_waited_for(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()

    async def process() -> None:
        while True:
            await write(source, bytes(4096))

    async def client() -> None:
        while True:
            target.read()
            await asyncio.sleep(0)

    others = [asyncio.create_task(process()), asyncio.create_task(client())]
    await asyncio.sleep(0.1)
    before = copy._passed
    await copy.settle()
    # Far less than what could be moved in the time that it is given at most.
    assert copy._passed - before < 10 << 20
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    copy.stop()


@pytest.mark.parametrize("size", [0, 5, 65536])
async def test_finished_it_ends_with_what_is_there(pipes: tuple[Pipe, Pipe], size: int) -> None:
    source, target = pipes
    ends = 0

    def ended() -> None:
        nonlocal ends
        ends += 1

    copy = Copy(os.dup(source.reader), os.dup(target.writer), "it", ended)
    copy.start()
    os.close(target.writer)
    await write(source, b"x" * size)
    copy.finish()
    async with asyncio.timeout(SECONDS):
        await copy.done.wait()
    await write(source, b"too late")
    assert target.read() == b"x" * size
    assert target.ended
    copy.stop()
    copy.finish()
    copy.cut()
    await copy.settle()
    assert ends == 1
    target.writer = os.open(os.devnull, os.O_WRONLY)


async def test_cut_it_writes_what_it_has(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    await write(source, text := os.urandom(100_000))
    copy.cut()
    assert not copy.done.is_set()  # the client has yet to read
    assert await read(target, len(text)) == text
    async with asyncio.timeout(SECONDS):
        await copy.done.wait()


# --- before it starts -----------------------------------------------------------------------


async def test_what_is_held_is_written_once_it_is_started(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.hold()
    text = os.urandom(1 << 20)
    async with asyncio.timeout(SECONDS):
        await write(source, text)
    assert target.read() == b""
    await copy.settle()
    assert target.read() == b""
    copy.start()
    assert await read(target, len(text)) == text
    copy.stop()


async def test_too_much_to_be_held_starts_it(
    pipes: tuple[Pipe, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.shim.copying._HELD", 200_000)
    source, target = pipes
    copy = copying(source, target)
    copy.hold()
    writing = asyncio.create_task(write(source, text := os.urandom(1 << 20)))
    assert await read(target, len(text)) == text
    await writing
    assert copy.started
    copy.stop()


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["/dev/null", "{}/empty", "{}/file", "{}"])
async def test_a_source_that_epoll_refuses_is_read_to_its_end(
    pipes: tuple[Pipe, Pipe], tmp_path: Path, source: str
) -> None:
    _, target = pipes
    text = os.urandom(MUCH)
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(text)
    before = descriptors(os.getpid())
    copy = Copy(os.open(source.format(tmp_path), os.O_RDONLY), os.dup(target.writer), "it")
    copy.start()
    expected = text if source.endswith("file") else b""
    assert await read(target, len(expected)) == expected
    async with asyncio.timeout(SECONDS):
        await copy.done.wait()
    assert descriptors(os.getpid()) == before


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.ESTALE])
async def test_a_source_that_cannot_be_moved_or_read(
    pipes: tuple[Pipe, Pipe],
    tmp_path: Path,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As some in /proc, or a file on a disk that is broken: it ends there, with a word."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    _, target = pipes
    (tmp_path / "file").write_bytes(b"unreadable")
    monkeypatch.setattr(os, "splice", refuse)
    copy = Copy(os.open(tmp_path / "file", os.O_RDONLY), os.dup(target.writer), "it")
    with monkeypatch.context() as broken:
        broken.setattr(os, "read", refuse)
        copy.start()
    async with asyncio.timeout(SECONDS):
        await copy.done.wait()
    assert caplog.messages == [f"it: {os.strerror(error)}"]


async def test_a_source_without_end_lets_others_run(pipes: tuple[Pipe, Pipe]) -> None:
    _, target = pipes
    copy = Copy(os.open("/dev/zero", os.O_RDONLY), os.dup(target.writer), "it")
    copy.start()
    assert not any(await read(target, MUCH))
    copy.stop()


async def test_nobody_reads_any_more(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    os.close(target.reader)
    await write(source, b"for nobody")
    async with asyncio.timeout(SECONDS):
        await copy.done.wait()
    target.reader = os.open(os.devnull, os.O_RDONLY)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk does, a limit does as well."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("room", [0, 100, 65536])
async def test_what_a_file_does_not_take_is_dropped_until_it_does(
    pipes: tuple[Pipe, Pipe], tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    source, _ = pipes
    path = tmp_path / "file"
    copy = Copy(os.dup(source.reader), os.open(path, os.O_WRONLY | os.O_CREAT), "one: to a file")
    copy.start()
    with largest_file(room):
        for size in (1000, 65536, 1000):
            await write(source, b"x" * size)
            await copy.settle()
    assert path.stat().st_size == room
    await write(source, b"there is room")
    await copy.settle()
    assert path.read_bytes() == b"x" * room + b"there is room"
    copy.stop()
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert told == [
        "one: to a file: file too large: what comes is dropped",
        f"one: to a file: {1000 + 65536 + 1000 - room} bytes were dropped",
    ]


@pytest.mark.parametrize("target", ["/dev/null", "/dev/full"])
async def test_a_device_as_target(
    pipes: tuple[Pipe, Pipe], caplog: pytest.LogCaptureFixture, target: str
) -> None:
    source, _ = pipes
    copy = Copy(os.dup(source.reader), os.open(target, os.O_WRONLY), "it")
    copy.start()
    async with asyncio.timeout(SECONDS):
        await write(source, bytes(MUCH))
        await copy.settle()
    copy.stop()
    assert ("300000 bytes were dropped" in caplog.text) is (target == "/dev/full")


async def test_between_pipes_nothing_is_on_its_way(pipes: tuple[Pipe, Pipe]) -> None:
    """What the target does not take stays where it is: it is not lost with this process."""
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    await write(source, text := os.urandom(100_000))
    await copy.settle()
    copy.stop()
    taken = target.read()
    assert text == taken + source.read()
    assert len(taken) >= 65536 // 2


async def test_what_is_frozen_waits_for_another(pipes: tuple[Pipe, Pipe], tmp_path: Path) -> None:
    """What has been read and not written goes to whoever copies on, and no more is read."""
    _, target = pipes
    file = tmp_path / "file"
    file.write_bytes(b"x" * MUCH)
    # Not between two pipes, where nothing is in this process.
    with file.open("rb") as opened:
        copy = Copy(os.dup(opened.fileno()), os.dup(target.writer), "it")
        copy.start()
        async with asyncio.timeout(SECONDS):
            while not (before := target.read()):
                await asyncio.sleep(0)
        rest = copy.freeze()
        where = os.lseek(opened.fileno(), 0, os.SEEK_CUR)
        for _ in range(5):
            before += target.read()
            await asyncio.sleep(0)
        assert os.lseek(opened.fileno(), 0, os.SEEK_CUR) == where < MUCH
        assert len(before) + len(rest) == where
        other = Copy(os.dup(opened.fileno()), os.dup(target.writer), "it")
        other.put(rest)
        other.start()
        assert await read(target, MUCH - len(before)) == b"x" * (MUCH - len(before))
        copy.stop()
        await asyncio.wait_for(other.done.wait(), SECONDS)


async def test_what_is_thawed_goes_on(pipes: tuple[Pipe, Pipe]) -> None:
    source, target = pipes
    copy = copying(source, target)
    copy.start()
    assert copy.freeze() == b""
    await write(source, b"later")
    for _ in range(5):
        await asyncio.sleep(0)
    assert target.read() == b""
    copy.thaw()
    assert await read(target, 5) == b"later"
    copy.stop()
