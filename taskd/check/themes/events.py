"""Events: which, in what order, how often, and what is in them.

Source: containerd's ``runtime/v2/README.md`` ("Events"), ``runtime/v2/shim/publisher.go``.
"""

from __future__ import annotations

import time

import anyio

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.programs import ALLOCATE, EXIT
from taskd.check.receiver import Received
from taskd.check.registry import Missing, NotApplicable, Theme
from taskd.check.shim import Task
from taskd.proto.containerd import events
from taskd.wellknown import nanoseconds

theme = Theme("events")

_SECONDS = 20.0
"""For an event to come: Go's shims try for 15 s."""
_MORE_SECONDS = 0.3
"""For what should not come."""

_LIFE = ["create", "start", "exit", "delete"]


async def _arrive(case: Case, expected: list[str]) -> list[Received]:
    """Wait for events, and see that there are no others, in whatever order."""
    await case.receiver.until(lambda found: len(found) >= len(expected), _SECONDS)
    await anyio.sleep(_MORE_SECONDS)
    found = list(case.receiver.events)
    case.equal("the events that came (in any order)", sorted(expected), sorted(map(str, found)))
    return found


async def _in_order(case: Case, expected: list[str]) -> list[Received]:
    found = await _arrive(case, expected)
    case.equal("the order of the events", expected, [str(each) for each in found])
    return found


async def _life(case: Case) -> Task:
    task = await case.running(EXIT(42))
    await task.wait()
    await task.delete()
    return task


@theme.check("create, start, exit, delete: each once, in this order")
async def _(case: Case) -> None:
    await _life(case)
    await _in_order(case, _LIFE)


@theme.check("what is in them: ids, pids, exit status, times, streams")
async def _(case: Case) -> None:
    out = case.output()
    before = time.time_ns() - 2 * 10**9
    task = await case.created(EXIT(42), stdout=str(out.path))
    created = task.pid
    await task.start()
    waited = await task.call("Wait")
    await task.delete()
    create, start, exit_, delete = (each.event for each in await _in_order(case, _LIFE))
    assert isinstance(create, events.TaskCreate)
    case.equal("create: pid", created, create.pid)
    case.equal("create: bundle", str(task.bundle.path), create.bundle)
    case.equal("create: stdout", str(out.path), create.io.stdout if create.io else "")
    assert isinstance(start, events.TaskStart)
    case.equal("start", (task.id, task.pid), (start.container_id, start.pid))
    assert isinstance(exit_, events.TaskExit)
    case.equal(
        "exit",
        (task.id, task.id, task.pid, 42),
        (exit_.container_id, exit_.id, exit_.pid, exit_.exit_status),
    )
    case.equal("exit: exited_at", nanoseconds(waited.exited_at), nanoseconds(exit_.exited_at))
    case.true(
        nanoseconds(exit_.exited_at) > before, "exit: exited_at", "just now", str(exit_.exited_at)
    )
    assert isinstance(delete, events.TaskDelete)
    case.equal(
        "delete",
        (task.id, task.pid, 42),
        (delete.container_id, delete.pid, delete.exit_status),
    )


@theme.check("the envelope: namespace, and a time that does not go back")
async def _(case: Case) -> None:
    before = time.time_ns() - 2 * 10**9
    await _life(case)
    found = await _in_order(case, _LIFE)
    case.equal("namespaces", {case.namespace}, {each.namespace for each in found})
    times = [each.timestamp for each in found]
    case.equal("timestamps", sorted(times), times)
    case.true(before < times[0], "the first timestamp", "just now", str(times[0]))


@theme.check("execs: exec-added, exec-started, exit, and the container's exit after")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two", EXIT(7))
    pid = await task.start("two")
    await task.wait("two")
    await task.delete("two")
    await task.end()
    found = await _in_order(
        case,
        [
            "create",
            "start",
            "exec-added two",
            "exec-started two",
            "exit two",
            "exit",
            "delete",
        ],
    )
    started, ended = found[3].event, found[4].event
    assert isinstance(started, events.TaskExecStarted)
    assert isinstance(ended, events.TaskExit)
    case.equal("exec-started: pid", pid, started.pid)
    case.equal("exit", (pid, 7), (ended.pid, ended.exit_status))


@theme.check("the container's exit comes after those of all execs that end with it")
async def _(case: Case) -> None:
    task = await case.running()
    for name in ("two", "three", "four"):
        await task.exec(name)
        await task.start(name)
    await task.kill()
    await task.wait()
    await case.receiver.until(lambda found: [e.kind for e in found].count("exit") >= 4, _SECONDS)
    exits = [each.process for each in case.receiver.events if each.kind == "exit"]
    case.equal("the exits that came", ["", "four", "three", "two"], sorted(exits))
    case.equal("the last exit", "the container's", exits[-1] or "the container's")


@theme.check("a process that ends at once has started before")
async def _(case: Case) -> None:
    task = await case.running()
    names = [f"e{number}" for number in range(8)]

    async def one(name: str) -> None:
        await task.exec(name, EXIT(0))
        await task.start(name)
        await task.wait(name)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(one, name)
    await case.receiver.until(
        lambda found: [e.kind for e in found].count("exit") >= len(names), _SECONDS
    )
    for name in names:
        kinds = [each.kind for each in case.receiver.events if each.process == name]
        case.equal(f"the events of {name}", ["exec-added", "exec-started", "exit"], kinds)


@theme.check("a container that is killed before it was started: create, exit, delete")
async def _(case: Case) -> None:
    task = await case.created_with_process()
    await task.end()
    await _in_order(case, ["create", "exit", "delete"])


@theme.check("a container that fails to be created is not told of")
async def _(case: Case) -> None:
    task = await case.task()
    (task.bundle.path / "config.json").write_bytes(b"{")
    await task.fails("Create", bundle=str(task.bundle.path))
    await _arrive(case, [])


@theme.check("paused and resumed", about="Pause")
async def _(case: Case) -> None:
    task = await case.running()
    await task.call("Pause")
    await task.call("Resume")
    await task.end()
    await _in_order(case, ["create", "start", "paused", "resumed", "exit", "delete"])


@theme.check("nothing is lost, or told twice, while the daemon is away for 2 s")
async def _(case: Case) -> None:
    task = await case.running(EXIT(5, 1))
    await case.receiver.until(lambda found: len(found) >= 2, _SECONDS)
    await case.receiver.stop()
    case.equal("Wait", 5, await task.wait())
    await task.delete()
    await anyio.sleep(1)
    await case.receiver.start()
    found = [str(each) for each in await _arrive(case, _LIFE)]
    if found != _LIFE:
        case.known(differences.LATE_EVENTS)


@theme.check("memory that runs out is told (oom)", about="the event oom")
async def _(case: Case) -> None:
    limits = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    task = await case.running(ALLOCATE(200), limits=limits)
    status = await task.wait(timeout=20)
    if status == 0:
        raise NotApplicable("memory is not limited here")
    if not await case.receiver.until(lambda found: "oom" in [e.kind for e in found], 3):
        raise Missing("the event oom")
