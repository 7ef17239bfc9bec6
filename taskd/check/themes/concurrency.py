"""Calls at the same time."""

from __future__ import annotations

import asyncio
import signal

import anyio

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.container import rootfs_mounts
from taskd.check.programs import EXIT
from taskd.check.registry import Theme, running
from taskd.errors import Code, TaskdError, Unknown
from taskd.proto.containerd.v1.types import Status

theme = Theme("concurrency")


@theme.check("20 Waits before Start, during the run, and after the end say the same")
async def _(case: Case) -> None:
    task = await case.created(EXIT(6, 0.5))
    waits = [asyncio.ensure_future(task.wait()) for _ in range(20)]
    await anyio.sleep(0.1)
    await task.start()
    waits += [asyncio.ensure_future(task.wait()) for _ in range(20)]
    statuses = list(await asyncio.gather(*waits))
    statuses += await asyncio.gather(*(task.wait() for _ in range(20)))
    case.equal("Wait, 60 times", [6] * 60, statuses)


@theme.check("Waits that clients gave up harm nobody")
async def _(case: Case) -> None:
    task = await case.running()
    for _ in range(20):
        waiting = asyncio.ensure_future(task.wait())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
    await task.kill()
    case.equal("Wait", 137, await task.wait())


@theme.check("Create of one id, several at once: one succeeds, and its container runs")
async def _(case: Case) -> None:
    task = await case.task()
    codes = await task.at_once(
        "Create",
        4,
        bundle=str(task.bundle.path),
        rootfs=rootfs_mounts(case.subject.rootfs),
        options=case.subject.any_options,
    )
    if codes == [Code.UNKNOWN] * 4:
        # Each may be in another's way, but not in that of one which comes after them.
        case.known(differences.COLLISION)
        await task.create()
        codes = [Code.OK, *codes[1:]]
    case.equal("Create, 4 times at once: how many succeed", 1, codes.count(Code.OK))
    if codes.count(Code.ALREADY_EXISTS) < 3:
        case.known(differences.TWICE)
    try:
        await task.start()
    except Unknown:
        if Code.UNKNOWN not in codes:
            raise
        # What was refused took it along, and the shim does not know.
        case.known(differences.COLLISION)
        await task.shim.kill()
        return
    case.equal("State", Status.RUNNING, (await task.state()).status)


@theme.check("State and Connect are answered while Create takes its time")
async def _(case: Case) -> None:
    # Runtimes that know hooks take this long; others are as fast as ever.
    slow = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1"]}]}
    task = await case.task(hooks=slow)
    creating = asyncio.ensure_future(task.create())
    while not creating.done():
        try:
            state = await task.state()
        except TaskdError as exc:
            case.equal("State while Create goes on", Code.NOT_FOUND, exc.code)
        else:
            case.equal("State while Create goes on", Status.CREATED, state.status)
        await task.call("Connect")
        await anyio.sleep(0.05)
    await creating
    await task.start()


@theme.check("Start, several at once: one succeeds")
async def _(case: Case) -> None:
    task = await case.created()
    codes = await task.at_once("Start", 4)
    case.equal("Start, 4 times at once: how many succeed", 1, codes.count(Code.OK))
    case.equal("State", Status.RUNNING, (await task.state()).status)


@theme.check("Delete, twice at once: one succeeds, the other finds nothing")
async def _(case: Case) -> None:
    task = await case.stopped()
    codes = await task.at_once("Delete", 2)
    case.equal("Delete, twice at once", [Code.OK, Code.NOT_FOUND], codes)


@theme.check("Kill, Wait, State and Delete, all at once, end in a container that is gone")
async def _(case: Case) -> None:
    task = await case.running()
    deleted = False

    async def delete() -> None:
        nonlocal deleted
        while not deleted:
            try:
                await task.delete()
                deleted = True
            except TaskdError as exc:
                refusals = (Code.UNKNOWN, Code.FAILED_PRECONDITION)
                case.true(exc.code in refusals, "Delete", "a refusal or success", str(exc))
                await anyio.sleep(0.01)

    async def others() -> None:
        while not deleted:
            try:
                await task.state()
                await task.call("Pids")
            except TaskdError as exc:
                allowed = (Code.NOT_FOUND, Code.UNKNOWN)
                case.true(exc.code in allowed, "State or Pids", "NOT_FOUND at most", str(exc))
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        for each in (delete, others, others):
            group.start_soon(each)
        await anyio.sleep(0.05)
        waiting = asyncio.ensure_future(task.wait())
        await anyio.sleep(0.02)
        await task.kill(signal.SIGKILL)
        case.equal("Wait", 137, await waiting)
    await task.refused("State", Code.NOT_FOUND)


@theme.check("100 calls at once on one connection are all answered", scene=running)
async def _(case: Case) -> None:
    task = case.container
    states = await asyncio.gather(*(task.state() for _ in range(100)))
    case.equal("State, 100 times", {task.pid}, {each.pid for each in states})


@theme.check("several connections at once", scene=running)
async def _(case: Case) -> None:
    task = case.container
    connections = [await case.connect(task.shim.bootstrap) for _ in range(10)]
    for connection in connections:
        state = await task.state(connection=connection)
        case.equal("State on another connection", task.pid, state.pid)
    for connection in connections:
        await connection.aclose()
    case.equal("State on the first connection", task.pid, (await task.state()).pid)
