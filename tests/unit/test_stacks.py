from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading

import pytest

from taskd.stacks import show_on, stacks


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def test_a_task_is_shown_down_to_where_it_waits() -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(outer(event)) for _ in range(3)}
        await asyncio.sleep(0)
        lines = list(stacks(tasks))
        event.set()
    assert lines[:2] == ["stacks of 3 tasks:", "3 tasks:"]
    assert [line.split()[-1] for line in lines[2:5]] == ["outer", "inner", "Event.wait"]
    assert f"{__file__}:" in lines[2]


async def test_a_task_that_has_ended_or_not_begun() -> None:
    ended = asyncio.create_task(asyncio.sleep(0))
    await ended
    begun = asyncio.create_task(asyncio.sleep(0))
    lines = list(stacks({ended, begun}))
    assert lines[0] == "stacks of 2 tasks:"
    await begun


async def test_a_signal_shows_tasks_and_threads(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryFile() as file:
        show_on(signal.SIGUSR2, file.fileno())
        threading.Event().wait(0)
        waiting = asyncio.create_task(outer(asyncio.Event()))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR2)
        # It goes on for whoever asks again.
        os.kill(os.getpid(), signal.SIGUSR2)
        file.seek(0)
        threads = file.read().decode()
        await asyncio.sleep(0.01)
    waiting.cancel()
    assert threads.count("(most recent call first)") >= 2
    assert "test_a_signal_shows_tasks_and_threads" in threads
    assert "outer" in caplog.text
