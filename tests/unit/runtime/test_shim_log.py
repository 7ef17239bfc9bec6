"""A shim's log on its way into the daemon's, with shims that write too much of it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from taskd.runtime.shim_log import ShimLog

FLOOD = 1_000_000
WORDS = re.compile(r"shim testing/one: (.*)")


class Written:
    """A log, its FIFO's other end, and what has arrived."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        bundle = SimpleNamespace(namespace="testing", id="one", log=folder / "log")
        self.log = ShimLog(bundle)  # type: ignore[arg-type]
        self.shim = os.open(bundle.log, os.O_WRONLY)
        self._caplog = caplog

    def write(self, data: bytes) -> None:
        assert os.write(self.shim, data) == len(data)

    async def flood(self, data: bytes) -> None:
        """Write it as a shim does that waits when its log is not read."""
        await asyncio.to_thread(self._write_all, data)

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.shim, data) :]

    @property
    def lines(self) -> list[str]:
        found = (WORDS.fullmatch(each.getMessage()) for each in self._caplog.records)
        return [each[1] for each in found if each]

    @property
    def left_out(self) -> int:
        found = (re.fullmatch(r"(\d+) bytes of its log are left out", each) for each in self.lines)
        return sum(int(each[1]) for each in found if each)

    async def until(self, line: str) -> None:
        async with asyncio.timeout(20):
            while line not in self.lines:
                await asyncio.sleep(0.01)


@pytest.fixture
async def written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Written]:
    caplog.set_level(logging.INFO)
    found = Written(tmp_path, caplog)
    yield found
    found.log.close()
    os.close(found.shim)


async def test_lines_come_as_they_are_written(written: Written) -> None:
    written.write(b"one\ntw")
    await written.until("one")
    written.write(b"o\n\nthree")
    await written.until("two")
    written.log.close()
    written.log.close()
    assert written.lines == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        (b"back\x08\x08\r", r"back\x08\x08\r"),
        ("\u202eright to left\u2028".encode(), r"\u202eright to left\u2028"),
        ("größer 多".encode(), "größer 多"),
        (b"not \xff text\x00", r"not \xff text\x00"),
        (b"a\\b", r"a\b"),
    ],
)
async def test_what_a_terminal_would_obey_is_escaped(
    written: Written, line: bytes, shown: str
) -> None:
    written.write(line + b"\n")
    await written.until(shown)


@pytest.mark.parametrize("more", [0, 1, 20_000])
async def test_a_long_line_is_cut(written: Written, more: int) -> None:
    written.write(b"x" * (4096 + more) + b"\nnext\n")
    await written.until("next")
    assert written.lines[0] == "x" * 4096 + (f"… ({more} more bytes)" if more else "")


@pytest.mark.parametrize(
    "piece", [b"x" * 1000, b"a line of a log\n" * 10, b"x" * 5000 + b"\n"], ids=len
)
async def test_what_is_too_much_is_left_out_and_counted(written: Written, piece: bytes) -> None:
    flood = piece * (FLOOD // len(piece))
    await written.flood(flood)
    # It goes on with a whole line, some time later.
    async with asyncio.timeout(20):
        while "after" not in written.lines:
            written.write(b"\nafter\n")
            await asyncio.sleep(0.1)
    lines = [line for line in written.lines if line != "after" and "left out" not in line]
    taken = sum(line.count("x") + len(line.strip("x")) for line in lines)
    cut = sum(int(found) for found in re.findall(r"\((\d+) more bytes\)", "\n".join(lines)))
    assert written.left_out > 0
    # All of it but newlines is either there, or told of.
    assert taken + cut + written.left_out >= len(flood.replace(b"\n", b""))
    assert max(map(len, lines)) < 4096 + 30
    assert len(written.log._line) <= 4096


async def test_others_get_their_turn_in_a_flood(written: Written) -> None:
    turns = 0
    written.write(b"a line of a log\n" * 4096)  # all that fits
    while _waiting(written.shim):
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 16


def _waiting(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
