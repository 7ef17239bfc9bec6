"""Ends: of the shim by kill -9, of the daemon, and of both in order.

Source: containerd's ``runtime/v2/binary.go`` (``Delete``) and ``cleanupAfterDeadShim``.
"""

from __future__ import annotations

import time

import anyio

from taskd.check.case import Case
from taskd.check.programs import EXIT
from taskd.check.registry import NotApplicable, Theme
from taskd.check.shim import Task, until
from taskd.check.traces import alive
from taskd.proto.containerd.v1.types import Status
from taskd.wellknown import nanoseconds

theme = Theme("death and delete")


async def _kill_and_delete(case: Case, task: Task, *pids: int) -> None:
    before = time.time_ns()
    await task.shim.kill()
    answer = await case.clean_up(task.bundle)
    case.equal("delete: exit status", 137, answer.exit_status)
    case.equal("delete: pid", task.pid, answer.pid)
    at = nanoseconds(answer.exited_at)
    case.true(
        before <= at <= time.time_ns(), "delete: exited_at", "a time just now", f"{at / 1e9:.3f}"
    )
    for pid in (task.pid, *pids):
        gone = await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        case.true(gone, "delete", f"the end of process {pid}", "it runs")
    case.equal("the mounts after delete", [], case.mounts())
    again = await case.clean_up(task.bundle)
    case.equal("delete once more: exit status", 137, again.exit_status)


@theme.check("kill -9 of the shim, and delete: a container that runs")
async def _(case: Case) -> None:
    task = await case.running(case.subject.several(2))
    await _kill_and_delete(case, task)
    others = await until(lambda: not case.processes())
    case.true(others, "delete", "no process left", str(case.processes()))


@theme.check("kill -9 of the shim, and delete: one that was never started")
async def _(case: Case) -> None:
    await _kill_and_delete(case, await case.created())


@theme.check("kill -9 of the shim, and delete: one that has ended")
async def _(case: Case) -> None:
    await _kill_and_delete(case, await case.stopped())


@theme.check("kill -9 of the shim, and delete: one that is paused", about="Pause")
async def _(case: Case) -> None:
    task = await case.running()
    await task.call("Pause")
    await _kill_and_delete(case, task)


@theme.check("kill -9 of the shim, and delete: one with an exec", about="Exec")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two")
    await _kill_and_delete(case, task, await task.start("two"))


@theme.check("kill -9 of the shim ends the daemon's connection at once")
async def _(case: Case) -> None:
    task = await case.running()
    await task.shim.kill()
    with anyio.move_on_after(5) as scope:
        await task.shim.connection.wait_closed()
    case.true(not scope.cancelled_caught, "kill -9", "the connection's end", "none in 5 s")


@theme.check("the container goes on when the shim is killed, until delete")
async def _(case: Case) -> None:
    task = await case.running()
    await task.shim.kill()
    await anyio.sleep(0.2)
    if not alive(task.pid):
        raise NotApplicable("its containers end with it")
    await case.clean_up(task.bundle)
    gone = await until(lambda: not alive(task.pid))
    case.true(gone, "delete", "the end of the process", "it runs")


@theme.check("the daemon goes and comes back: the shim, and all it knows, are there")
async def _(case: Case) -> None:
    task = await case.running()
    await task.shim.connection.aclose()
    await anyio.sleep(0.2)
    task.shim.connection = await case.connect(task.shim.bootstrap)
    state = await task.state()
    case.equal("State", (Status.RUNNING, task.pid), (state.status, state.pid))
    answer = await task.call("Connect")
    case.equal("Connect", (task.shim.pid, task.pid), (answer.shim_pid, answer.task_pid))
    await task.kill()
    case.equal("Wait", 137, await task.wait())


@theme.check("an end that nobody was there for is known when the daemon is back")
async def _(case: Case) -> None:
    task = await case.running(EXIT(8, 0.3))
    await task.shim.connection.aclose()
    case.true(await until(lambda: not alive(task.pid)), "exit", "its end", "none")
    task.shim.connection = await case.connect(task.shim.bootstrap)
    case.equal("Wait", 8, await task.wait())


@theme.check("Shutdown is ignored while there is a container")
async def _(case: Case) -> None:
    task = await case.running()
    await task.shim.shut_down()
    ended = await task.shim.ends(0.3)
    case.true(not ended, "Shutdown", "a shim that goes on", "its end")
    case.equal("State", Status.RUNNING, (await task.state()).status)


@theme.check("Delete does not end the shim, Shutdown does, and its socket is gone")
async def _(case: Case) -> None:
    task = await case.stopped()
    await task.delete()
    ended = await task.shim.ends(0.3)
    case.true(not ended, "Delete", "a shim that waits for Shutdown", "its end")
    await task.shim.shut_down()
    case.true(await task.shim.ends(), "Shutdown", "the end of the shim", "none")
    case.true(not task.shim.has_socket, "Shutdown", "no socket", task.shim.socket)


@theme.check("delete after Shutdown, as daemons run it, is harmless")
async def _(case: Case) -> None:
    task = await case.stopped()
    await task.delete()
    await task.shim.shut_down()
    await task.shim.ends()
    await case.clean_up(task.bundle)


@theme.check("Shutdown of a shim that never had a container")
async def _(case: Case) -> None:
    task = await case.task()
    await task.shim.shut_down()
    case.true(await task.shim.ends(), "Shutdown", "the end of the shim", "none")
