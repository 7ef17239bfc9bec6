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

__all__ = ["looking"]

TASKS = 200
SECONDS = 20


async def looking(sides: Sides, rounds: int = 3) -> Table:
    """Of one refresh a second, by the CPU time of the daemon's process."""
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
                async with views(environment):
                    await anyio.sleep(3)  # what the first look costs
                    before, begin = cpu(pid), anyio.current_time()
                    await anyio.sleep(SECONDS)
                    used, took = cpu(pid) - before, anyio.current_time() - begin
                    table.add(name, "taskd", 100 * used / took)
    return table


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
