"""One container from Create to Delete: pids, states, exit statuses, signals, times."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from taskd.check import container, differences
from taskd.check.case import Case
from taskd.check.programs import EXIT, PWD, SPAWN, TICK, TRAP, WORDS
from taskd.check.registry import Theme, running
from taskd.check.shim import Task, until
from taskd.check.traces import alive
from taskd.errors import Code, TaskdError
from taskd.proto.containerd.runc.v1 import ProcessDetails
from taskd.proto.containerd.v1.types import Status
from taskd.wellknown import from_any, nanoseconds, unpack

theme = Theme("lifecycle")

SLACK = 2 * 10**9
"""Nanoseconds by which a time may be off."""


@theme.check("created, running, stopped, deleted")
async def _(case: Case) -> None:
    task = await case.task("one", EXIT(42))
    created = await task.create()
    case.true(not created or alive(created), "Create", "the pid of a process", str(created))
    case.equal("State after Create", Status.CREATED, (await task.state()).status)
    case.equal("State after Create", created, (await task.state()).pid)
    pid = await task.start()
    case.equal("Start", created or pid, pid)
    case.equal("Wait", 42, await task.wait())
    state = await task.state()
    case.equal("State after the end", (Status.STOPPED, 42), (state.status, state.exit_status))
    deleted = await task.delete()
    case.equal("Delete", (pid, 42), (deleted.pid, deleted.exit_status))
    await task.refused("State", Code.NOT_FOUND)


@theme.check("it is running between Start and its end", scene=running)
async def _(case: Case) -> None:
    task = case.container
    state = await task.state()
    case.equal("State", (Status.RUNNING, task.pid), (state.status, state.pid))
    case.equal("State of what runs: exit_status", 0, state.exit_status)
    case.true(alive(task.pid), "Start", "a process that runs", "none")


@theme.check("State tells what Create was told")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    task = await case.created(stdin=str(source.path), stdout=str(out.path), stderr=str(out.path))
    state = await task.state()
    told = (state.id, state.bundle, state.stdin, state.stdout, state.stderr, state.terminal)
    paths = (str(source.path), str(out.path), str(out.path))
    case.equal("State", (task.id, str(task.bundle.path), *paths, False), told)


@theme.check("times are those of the end, the same in Wait, State and Delete")
async def _(case: Case) -> None:
    before = time.time_ns() - SLACK
    task = await case.running(EXIT(0))
    waited = nanoseconds((await task.call("Wait")).exited_at)
    after = time.time_ns() + SLACK
    case.true(before < waited < after, "Wait", "a time just now", f"{waited / 1e9:.3f}")
    times = (
        nanoseconds((await task.state()).exited_at),
        nanoseconds((await task.delete()).exited_at),
    )
    case.equal("State and Delete: exited_at", (waited, waited), times)


@theme.check("a process that a signal ends has 128 and its number as status")
async def _(case: Case) -> None:
    task = await case.running()
    await task.kill(signal.SIGKILL)
    case.equal("Wait", 128 + signal.SIGKILL, await task.wait())


@theme.check("a signal reaches the process")
async def _(case: Case) -> None:
    out = case.output()
    task = await case.running(TRAP, stdout=str(out.path))
    case.true(await out.until(b"ready", 15), "Start", "output", "none")
    await task.kill(signal.SIGUSR1)
    case.equal("Wait after SIGUSR1", 7, await task.wait())


@theme.check("Kill with all reaches every process")
async def _(case: Case) -> None:
    task = await case.running(SPAWN(2))
    await until(lambda: len(_others(case, task)) >= 2)
    await task.kill(all=True)
    await task.wait()
    gone = await until(lambda: not _others(case, task))
    case.true(gone, "Kill(all)", "no process left", str(_others(case, task)))


@theme.check("the end of its own process is the end of the container's others")
async def _(case: Case) -> None:
    task = await case.running(SPAWN(2))
    await until(lambda: len(_others(case, task)) >= 2)
    await task.kill()
    await task.wait()
    await task.delete()
    gone = await until(lambda: not _others(case, task))
    case.true(gone, "Delete", "no process left", str(_others(case, task)))


def _others(case: Case, task: Task) -> list[int]:
    known = (task.pid, task.shim.pid)
    return [pid for pid, command in case.processes() if pid not in known and "sleep" in command]


@theme.check("a container that was never started can be killed and deleted")
async def _(case: Case) -> None:
    task = await case.created_with_process()
    await task.kill()
    case.equal("Wait", 137, await task.wait())
    case.equal("State", Status.STOPPED, (await task.state()).status)
    await task.delete()


@theme.check("a container that was never started can be deleted")
async def _(case: Case) -> None:
    task = await case.created()
    await task.delete()
    await task.refused("State", Code.NOT_FOUND)
    gone = await until(lambda: not alive(task.pid))
    case.true(gone, "Delete", "the end of the process", "none")


@theme.check("a program that is not there is refused, and leaves nothing")
async def _(case: Case) -> None:
    task = await case.task("one", ["/no/such/program"])
    try:
        await task.create()
        await task.start()
    except TaskdError as exc:
        case.true("/no/such/program" in str(exc), "Create or Start", "words that name it", str(exc))
    else:
        case.true(False, "Create and Start of /no/such/program", "an error", "none")
    others = [each for each in case.processes() if each[0] != task.shim.pid]
    if not task.shim.containers:
        case.equal("the processes after Create has failed", [], others)


@theme.check("a bundle without a specification is refused")
async def _(case: Case) -> None:
    task = await case.task()
    config = task.bundle.path / "config.json"
    kept = config.read_bytes()
    config.unlink()
    await task.fails("Create", bundle=str(task.bundle.path))
    config.write_bytes(kept)


@theme.check("arguments and environment are the specification's")
async def _(case: Case) -> None:
    out = case.output()
    command = WORDS("one two", "", "three")
    task = await case.running(command, env={"A": "a b"}, stdout=str(out.path))
    await task.wait()
    came = await out.until(b"one two,,three,a b\n", 5)
    case.true(came, "its output", "one two,,three,a b", str(out.data))


@theme.check("its working folder is the specification's")
async def _(case: Case) -> None:
    out = case.output()
    task = await case.running(PWD, stdout=str(out.path))
    await task.wait()
    case.true(await out.until(b"/\n", 5), "its output", "/", str(out.data))


@theme.check("Connect tells the pids", scene=running)
async def _(case: Case) -> None:
    task = case.container
    answer = await task.call("Connect")
    case.equal("Connect", (task.shim.pid, task.pid), (answer.shim_pid, answer.task_pid))


@theme.check("Pids tells the processes of the container", about="Pids")
async def _(case: Case) -> None:
    task = await case.running(SPAWN(1))
    await until(lambda: len(_others(case, task)) >= 1)
    answer = await task.call("Pids")
    pids = {each.pid for each in answer.processes}
    case.equal("Pids", {task.pid, *_others(case, task)}, pids)


@theme.check("Pids names the execs", about="Pids", scene=running)
async def _(case: Case) -> None:
    task = case.container
    await task.exec("two")
    pid = await task.start("two")
    answer = await task.call("Pids")
    infos = {each.pid: from_any(each.info) for each in answer.processes}
    info = infos.get(pid)
    case.true(info is not None, "Pids", f"details of {pid}", str(infos))
    assert info is not None
    details = unpack(info)
    case.equal("Pids: details", ProcessDetails(exec_id="two"), details)
    await task.kill(exec_id="two")
    await task.wait("two")
    await task.delete("two")


@theme.check("Stats tells what it uses, in a message of containerd's", about="Stats", scene=running)
async def _(case: Case) -> None:
    task = case.container
    answer = await task.call("Stats")
    case.true(answer.stats is not None, "Stats", "statistics", "none")
    case.true(answer.stats.value, "Stats", "statistics", "an empty message")


@theme.check("Update is taken", about="Update", scene=running)
async def _(case: Case) -> None:
    task = case.container
    try:
        await task.call("Update", resources=container.resources({"pids": {"limit": 100}}))
    except TaskdError as exc:
        # Without root there may be no cgroup to set limits on.
        case.equal("Update", Code.FAILED_PRECONDITION, exc.code)
        case.known(differences.NO_CGROUP)
    await task.state()


@theme.check("Pause stops it, and Resume lets it go on", about="Pause")
async def _(case: Case) -> None:
    out = case.output()
    task = await case.running(TICK, stdout=str(out.path))
    await out.until(b"x\nx\n", 10)
    await task.call("Pause")
    case.equal("State", Status.PAUSED, (await task.state()).status)
    await until(lambda: False, 0.2)
    written = len(out.data)
    await until(lambda: False, 0.3)
    case.equal("the output while it is paused", written, len(out.data))
    await task.call("Resume")
    case.equal("State", Status.RUNNING, (await task.state()).status)
    grows = await until(lambda: len(out.data) > written)
    case.true(grows, "Resume", "more output", "none")


@theme.check("a paused container that is killed ends", about="Pause")
async def _(case: Case) -> None:
    task = await case.running()
    await task.call("Pause")
    await task.kill()
    # Where a freezer keeps even SIGKILL waiting; it may have ended by now, too.
    with suppress(TaskdError):
        await task.call("Resume")
    case.equal("Wait", 137, await task.wait())


@theme.check("Checkpoint of what never ran is refused", about="Checkpoint")
async def _(case: Case) -> None:
    task = await case.created()
    await task.refused(
        "Checkpoint", Code.UNKNOWN, Code.FAILED_PRECONDITION, path=str(case.folder / "none")
    )


@theme.check("the root filesystem is unmounted by Delete")
async def _(case: Case) -> None:
    task = await case.running()
    await task.end()
    case.equal("the mounts after Delete", [], case.mounts())
