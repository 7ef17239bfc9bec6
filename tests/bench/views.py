"""What looking costs the daemon: ``taskd top`` at a terminal, ``taskd ui`` in Chromium."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import pexpect
from bench.costs import cpu
from bench.table import Sides, Table
from harness.browser import chromium

from taskd.client import connect
from taskd.client.trace import Conversation
from taskd.proto.taskd.v1 import FollowRequest

__all__ = ["looking"]

TASKS = 200
SECONDS = 20
IGNORED = [f"/containerd.task.v2.Task/{name}" for name in ("State", "Stats")]


async def looking(sides: Sides, rounds: int = 3) -> Table:
    """Of one refresh a second, by the CPU time of the daemon's process.

    How many refreshes there were is counted: on a busy machine they come late.
    """
    table = Table(f"{TASKS} tasks looked at", "% of a core")
    namespace = f"{sides.namespace}-v"
    pid = sides.taskd.pid
    environment = os.environ | {
        "TASKD_ADDRESS": str(sides.taskd.address),
        "CONTAINERD_NAMESPACE": namespace,
        "TERM": "xterm-256color",
    }
    async with connect(sides.taskd.address, namespace) as client, AsyncExitStack() as made:
        for number in range(TASKS):
            run = client.run(sides.rootfs, ["/bin/sleep", "10000"], id=f"v{number}", output="none")
            await made.enter_async_context(run)
        for _ in range(rounds):
            for name, views in (("nobody", _nobody), ("taskd top", _top), ("taskd ui", _ui)):
                counting = FollowRequest(namespace=namespace, ignored=IGNORED)
                async with (
                    views(environment),
                    Conversation(client.channel, counting) as conversation,
                    anyio.create_task_group() as group,
                ):
                    refreshes: list[str] = []
                    group.start_soon(_count, conversation, refreshes)
                    await anyio.sleep(3)  # what the first look costs
                    begin, before, seen = anyio.current_time(), cpu(pid), len(refreshes)
                    await anyio.sleep(SECONDS)
                    used = cpu(pid) - before
                    turns = len(refreshes) - seen if name != "nobody" else SECONDS
                    table.add(name, "taskd", 100 * used / turns)
                    print(name, turns, "refreshes in", round(anyio.current_time() - begin, 1), "s")
                    group.cancel_scope.cancel()
    return table


async def _count(conversation: Conversation, refreshes: list[str]) -> None:
    async for said in conversation:
        if said.method.endswith("/Metrics") and said.nanoseconds is None:
            refreshes.append(said.method)


@asynccontextmanager
async def _nobody(_: dict[str, str]) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _top(environment: dict[str, str]) -> AsyncIterator[None]:
    screen = pexpect.spawn(
        sys.executable,
        ["-m", "taskd", "top"],
        env=environment,
        encoding="utf-8",
        timeout=120,
        dimensions=(50, 160),
    )
    await anyio.to_thread.run_sync(lambda: screen.expect(f"{TASKS} tasks"))
    reading = asyncio.create_task(_drain(screen))
    try:
        yield
    finally:
        reading.cancel()
        screen.close(force=True)


async def _drain(screen: pexpect.spawn[str]) -> None:
    while True:
        await anyio.to_thread.run_sync(lambda: screen.expect([pexpect.TIMEOUT, ".+"], timeout=0.2))


@asynccontextmanager
async def _ui(environment: dict[str, str]) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskd", "ui", "--no-open"),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        async with chromium() as browser, browser.page() as page:
            await page.open(line.split()[-1])
            await page.until(f"document.querySelectorAll('tbody tr').length === {TASKS}")
            yield
    finally:
        process.terminate()
        await process.wait()
