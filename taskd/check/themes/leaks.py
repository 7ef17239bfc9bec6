"""What is left: of one container's whole life here, and of every other check in the runner's."""

from __future__ import annotations

import os
from pathlib import Path

from taskd import procfs
from taskd.check import differences
from taskd.check.case import Case
from taskd.check.programs import ECHO, SPAWN
from taskd.check.registry import NotApplicable, Theme, running
from taskd.check.shim import Task, until

theme = Theme("leaks")


def _open(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))  # noqa: PTH115
        except OSError:
            continue
    return sorted(found)


async def _settled(pid: int, count: int) -> list[str]:
    """What a process has open, when it is no more than `count`, or after a while."""
    await until(lambda: len(_open(pid)) <= count, 5)
    return _open(pid)


async def _one_exec(task: Task, case: Case, name: str) -> None:
    out = case.output(f"out-{name}")
    await task.exec(name, ECHO("hello"), stdout=str(out.path))
    await task.start(name)
    await task.wait(name)
    await task.delete(name)
    await out.aclose()


@theme.check("descriptors of the shim: none is left of 20 execs", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container
    try:
        _open(task.shim.pid)
    except PermissionError:
        raise NotApplicable("the shim's descriptors cannot be seen") from None
    await _one_exec(task, case, "first")
    before = _open(task.shim.pid)
    for number in range(20):
        await _one_exec(task, case, f"e{number}")
    # A runtime of its own may open one or two more for itself.
    after = await _settled(task.shim.pid, len(before) + 3)
    case.true(
        len(after) <= len(before) + 3,
        "20 execs",
        f"{len(before)} descriptors, as before",
        f"{len(after)}: {', '.join(after)}",
    )


@theme.check("descriptors of the shim: none is left of 50 connections", scene=running)
async def _(case: Case) -> None:
    task = case.container
    before = _open(task.shim.pid)
    for _ in range(50):
        connection = await case.connect(task.shim.bootstrap)
        await task.state(connection=connection)
        await connection.aclose()
    after = await _settled(task.shim.pid, len(before) + 3)
    case.true(
        len(after) <= len(before) + 3,
        "50 connections",
        f"{len(before)} descriptors, as before",
        str(len(after)),
    )


@theme.check("zombies: none is left of a container's processes")
async def _(case: Case) -> None:
    task = await case.running(SPAWN(2))
    await task.kill(all=True)
    await task.wait()
    gone = await until(lambda: not _zombies(task.shim.pid), 5)
    case.true(gone, "Kill(all), Wait", "no zombies", str(_zombies(task.shim.pid)))


def _zombies(parent: int) -> list[int]:
    return [each.pid for each in procfs.processes() if each.state == "Z" and each.parent == parent]


@theme.check("a whole life: no process, mount, socket, file or cgroup is left")
async def _(case: Case) -> None:
    out = case.output()
    task = await case.running(case.subject.several(1), stdout=str(out.path))
    await task.end()
    await task.shim.shut_down()
    await task.shim.ends()
    await case.clean_up(task.bundle)
    case.equal("what is left", [], await case.left())


@theme.check("a life that ends by kill -9: no process, mount, file or cgroup is left")
async def _(case: Case) -> None:
    task = await case.running(case.subject.several(1))
    await task.shim.kill()
    await case.clean_up(task.bundle)
    case.equal("what is left", [], await case.left())
    if task.shim.has_socket:
        case.known(differences.ORPHANED_SOCKET)
