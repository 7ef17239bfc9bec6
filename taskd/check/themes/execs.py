"""More processes in a container."""

from __future__ import annotations

import signal

import anyio

from taskd.check import container, differences
from taskd.check.case import Case
from taskd.check.programs import EXIT, PWD, RAISE, SLEEP, WORDS, Program
from taskd.check.registry import Failed, Theme, running
from taskd.check.traces import alive
from taskd.errors import Code, TaskdError
from taskd.proto.containerd.v1.types import Status

theme = Theme("execs")


@theme.check("added, running, stopped, deleted", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container
    await task.exec("two", EXIT(7))
    state = await task.state("two")
    case.equal("State after Exec", (Status.CREATED, 0), (state.status, state.pid))
    pid = await task.start("two")
    case.true(pid not in (0, task.pid), "Start", "a pid of its own", str(pid))
    case.equal("Wait", 7, await task.wait("two"))
    state = await task.state("two")
    case.equal("State", (Status.STOPPED, 7, pid), (state.status, state.exit_status, state.pid))
    deleted = await task.delete("two")
    case.equal("Delete", (pid, 7), (deleted.pid, deleted.exit_status))
    await task.refused("State", Code.NOT_FOUND, exec_id="two")
    case.equal("State of the container", Status.RUNNING, (await task.state()).status)


@theme.check("exit statuses", about="Exec", scene=running)
async def _(case: Case) -> None:
    for status in (0, 1, 255):
        await _ends(case, EXIT(status), status)


@theme.check("exit statuses of signals that it sends itself", about="Exec", scene=running)
async def _(case: Case) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        await _ends(case, RAISE(int(number)), 128 + number)


async def _ends(case: Case, command: Program, status: int) -> None:
    """See how an exec ends."""
    task, name = case.container, str(command).replace(" ", "-")
    await task.exec(name, command)
    await task.start(name)
    case.equal(f"Wait for {command}", status, await task.wait(name))
    await task.delete(name)


@theme.check("arguments and environment are its specification's", about="Exec", scene=running)
async def _(case: Case) -> None:
    task, out = case.container, case.output()
    await task.exec("two", WORDS("one two"), env={"A": "a b"}, stdout=str(out.path))
    await task.start("two")
    await task.wait("two")
    came = await out.until(b"one two,a b\n", 5)
    case.true(came, "its output", "one two,a b", str(out.data))
    await task.delete("two")


@theme.check("its working folder is its specification's", about="Exec", scene=running)
async def _(case: Case) -> None:
    task, out = case.container, case.output()
    await task.exec("two", PWD, cwd="/proc", stdout=str(out.path))
    await task.start("two")
    await task.wait("two")
    case.true(await out.until(b"/proc\n", 5), "its output", "/proc", str(out.data))
    await task.delete("two")


@theme.check("its id is free again after Delete", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container
    for status in (3, 4):
        await task.exec("two", EXIT(status))
        await task.start("two")
        case.equal("Wait", status, await task.wait("two"))
        await task.delete("two")


@theme.check("a signal goes to the exec alone", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container
    await task.exec("two")
    await task.start("two")
    await task.kill(signal.SIGTERM, "two")
    case.equal("Wait", 143, await task.wait("two"))
    await task.delete("two")
    case.equal("State of the container", Status.RUNNING, (await task.state()).status)


@theme.check(
    "a program that is not there is refused, and can be deleted", about="Exec", scene=running
)
async def _(case: Case) -> None:
    task = case.container
    try:
        await task.exec("two", ["/no/such/program"])
        await task.start("two")
    except TaskdError as exc:
        case.true("/no/such/program" in str(exc), "Start", "words that name it", str(exc))
    else:
        case.true(False, "Start of /no/such/program", "an error", "none")
    await task.delete("two")
    case.equal("State of the container", Status.RUNNING, (await task.state()).status)


@theme.check(
    "a specification that is none is refused, and harms nobody", about="Exec", scene=running
)
async def _(case: Case) -> None:
    task = case.container
    spec = container.process_any({})
    spec.value = b"{"
    await task.fails("Exec", exec_id="two", spec=spec)
    case.equal("State of the container", Status.RUNNING, (await task.state()).status)


@theme.check("execs end with their container", about="Exec")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two")
    pid = await task.start("two")
    await task.kill()
    await task.wait()
    case.equal("Wait for the exec", 137, await task.wait("two"))
    case.true(not alive(pid), "the end of the container", "that of the exec", "it runs")
    await task.delete("two")
    await task.delete()


@theme.check("the container is deleted with an exec that was never started", about="Exec")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two")
    await task.end()


@theme.check("many at once", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container

    async def one(number: int) -> None:
        name = f"e{number}"
        await task.exec(name, EXIT(number))
        await task.start(name)
        case.equal(f"Wait for exit {number}", number, await task.wait(name))
        await task.delete(name)

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(one, number)


@theme.check("Exec of one id, several at once: one succeeds", about="Exec", scene=running)
async def _(case: Case) -> None:
    task = case.container
    command = case.subject.command(SLEEP)
    spec = container.process_any(container.process(command, case.namespace))
    answers = await task.at_once("Exec", 5, exec_id="two", spec=spec)
    expected = sorted([Code.OK, *[Code.ALREADY_EXISTS] * 4])
    case.equal("Exec, 5 times at once", expected, answers)
    await task.delete("two")


@theme.check("Start of one exec, several at once: one succeeds", about="Exec")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two")
    answers = await task.at_once("Start", 5, exec_id="two")
    case.equal("Start, 5 times at once: how many succeed", 1, answers.count(Code.OK))
    await task.shim.kill()  # which may not survive the next check


@theme.check("a second Start that was refused harms nobody when the container ends", about="Exec")
async def _(case: Case) -> None:
    task = await case.running()
    await task.exec("two")
    await task.start("two")
    await task.fails("Start", exec_id="two")
    try:
        await task.end()
    except Failed:
        if not await task.shim.has_panicked():
            raise
        case.known(differences.SECOND_START_PANIC)
