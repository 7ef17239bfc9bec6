"""Several containers in one shim, for shims that know groups.

Source: containerd's ``runtime/v2/runc/manager/manager_linux.go`` (``groupLabels``).
"""

from __future__ import annotations

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.registry import Missing, Theme
from taskd.check.shim import Task
from taskd.errors import Code
from taskd.proto.containerd.v1.types import Status

theme = Theme("groups")

_ABOUT = "groups"
_LABELS = {"io.containerd.runc.v2.group": "check", "io.taskd.shim.group": "check"}


async def _two(case: Case) -> tuple[Task, Task]:
    one = await case.running(id="one", annotations=_LABELS)
    two = await case.task("two", annotations=_LABELS)
    if two.shim is not one.shim:
        raise Missing(_ABOUT)
    await two.create()
    await two.start()
    return one, two


async def _end(case: Case, *tasks: Task) -> None:
    for task in tasks:
        await task.end()
    shim = tasks[0].shim
    await shim.shut_down()
    case.true(await shim.ends(), "Shutdown", "the end of the shim", "none")
    if shim.has_socket:
        case.known(differences.GROUP_SOCKET)
        case.orphaned_sockets.add(shim.socket)


@theme.check("two containers of one group have one shim", about=_ABOUT)
async def _(case: Case) -> None:
    one, two = await _two(case)
    case.equal("Connect", one.shim.pid, (await two.call("Connect")).shim_pid)
    for task in (one, two):
        state = await task.state()
        case.equal(f"State of {task.id}", (Status.RUNNING, task.pid), (state.status, state.pid))
    await _end(case, two, one)


@theme.check("the end of one is not that of the other", about=_ABOUT)
async def _(case: Case) -> None:
    one, two = await _two(case)
    await one.end()
    await one.refused("State", Code.NOT_FOUND)
    await one.shim.shut_down()
    case.true(not await one.shim.ends(0.3), "Shutdown", "a shim that goes on", "its end")
    case.equal("State of the other", Status.RUNNING, (await two.state()).status)
    await _end(case, two)


@theme.check("events of both come, each under its id", about=_ABOUT)
async def _(case: Case) -> None:
    one, two = await _two(case)
    await _end(case, two, one)
    await case.receiver.until(lambda found: len(found) >= 8, 20)
    for task in (one, two):
        kinds = [each.kind for each in case.receiver.events if each.of(task.id)]
        case.equal(f"the events of {task.id}", ["create", "start", "exit", "delete"], kinds)


@theme.check("kill -9 of the shim, and delete for each", about=_ABOUT)
async def _(case: Case) -> None:
    one, two = await _two(case)
    await one.shim.kill()
    for task in (one, two):
        answer = await case.clean_up(task.bundle)
        case.equal(f"delete of {task.id}: exit status", 137, answer.exit_status)
    case.equal("the mounts after delete", [], case.mounts())
