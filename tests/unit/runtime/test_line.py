"""Calls on a line at whose end one process follows another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from taskd import ttrpc
from taskd.errors import DeadlineExceeded
from taskd.runtime.line import Line

Result = TypeVar("Result")


class Connection:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answered = asyncio.Event()
        self.closed = asyncio.Event()

    async def call(self, service: str, method: str, payload: bytes, **_: object) -> bytes:
        self.calls.append(method)
        if self.closed.is_set():
            raise ttrpc.ConnectionClosed
        closed = asyncio.ensure_future(self.closed.wait())
        answered = asyncio.ensure_future(self.answered.wait())
        await asyncio.wait([closed, answered], return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        answered.cancel()
        if self.closed.is_set():
            raise ttrpc.ConnectionClosed
        return b"answer"

    async def wait_closed(self) -> None:
        await self.closed.wait()

    async def aclose(self) -> None:
        self.closed.set()


class Lines:
    def __init__(self) -> None:
        self.first, self.second = Connection(), Connection()
        self.second.answered.set()
        self.line = Line(self.first)

    async def lose(self) -> None:
        self.first.closed.set()
        await self.line.wait_lost()


@pytest.fixture
async def lines() -> Lines:
    return Lines()


async def soon(work: Awaitable[Result]) -> asyncio.Future[Result]:
    future = asyncio.ensure_future(work)
    await asyncio.sleep(0.01)
    assert not future.done()
    return future


@pytest.mark.parametrize("method", ["Wait", "State", "Delete"])
async def test_what_can_be_repeated_is(lines: Lines, method: str) -> None:
    calling = await soon(lines.line.call("", method, b""))
    await lines.lose()
    await asyncio.sleep(0.01)
    lines.line.go_on(lines.second)
    assert await calling == b"answer"
    assert (lines.first.calls, lines.second.calls) == ([method], [method])


@pytest.mark.parametrize("method", ["Create", "Start", "Kill", "Exec", "Checkpoint"])
async def test_what_may_have_been_done_is_not(lines: Lines, method: str) -> None:
    calling = await soon(lines.line.call("", method, b""))
    await lines.lose()
    with pytest.raises(ttrpc.ConnectionClosed):
        await calling
    # But what has not been sent waits.
    calling = await soon(lines.line.call("", method, b""))
    lines.line.go_on(lines.second)
    assert await calling == b"answer"
    assert lines.second.calls == [method]


async def test_nobody_goes_on(lines: Lines) -> None:
    calling = await soon(lines.line.call("", "Wait", b""))
    closed = asyncio.create_task(lines.line.wait_closed())
    await lines.lose()
    await asyncio.sleep(0.01)
    assert not closed.done()
    await lines.line.aclose()
    with pytest.raises(ttrpc.ConnectionClosed):
        await calling
    await closed
    with pytest.raises(ttrpc.ConnectionClosed):
        await lines.line.call("", "State", b"")


async def test_a_deadline_while_nobody_is_there(lines: Lines) -> None:
    await lines.lose()
    with pytest.raises(DeadlineExceeded):
        await lines.line.call("", "State", b"", timeout=0.05)


async def test_calls_wait_while_it_is_held(lines: Lines) -> None:
    first = asyncio.ensure_future(lines.line.call("s", "Kill", b""))
    waiting = asyncio.ensure_future(lines.line.call("s", "Wait", b""))
    holding = await soon(lines.line.hold())
    later = await soon(lines.line.call("s", "Kill", b""))
    lines.first.answered.set()
    # What lasts is not waited for, but what does not is.
    await asyncio.wait_for(holding, 5)
    assert await first == b"answer"
    assert lines.first.calls == ["Kill", "Wait"]
    await lines.lose()
    lines.line.go_on(lines.second)
    assert await asyncio.wait_for(later, 5) == b"answer"
    assert await waiting == b"answer"
    assert lines.second.calls == ["Kill"]


async def test_what_was_held_goes_on_with_the_same(lines: Lines) -> None:
    lines.first.answered.set()
    await lines.line.hold()
    later = await soon(lines.line.call("s", "Create", b""))
    lines.line.release()
    assert await asyncio.wait_for(later, 5) == b"answer"
    assert lines.first.calls == ["Create"]


async def test_what_was_held_has_a_deadline_and_an_end(lines: Lines) -> None:
    await lines.line.hold()
    with pytest.raises(DeadlineExceeded):
        await lines.line.call("s", "State", b"", timeout=0.01)
    later = await soon(lines.line.call("s", "Kill", b""))
    await lines.line.aclose()
    with pytest.raises(ttrpc.ConnectionClosed):
        await later
