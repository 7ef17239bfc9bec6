"""Containers that go on when their shim is killed, in another process of the same kind.

taskd's own, and no part of containerd's protocol: it is checked of shims that claim it, which is to
say, that write a record of a container into its bundle if there is a descriptor store. What is
expected is in docs/shims.md, "When a shim dies".
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from taskd import pidfd, slots
from taskd.check.case import Case
from taskd.check.programs import CAT, EXIT, SIZE, TRAP
from taskd.check.registry import NotApplicable, Play, Theme
from taskd.check.shim import CALL_SECONDS, Task, until
from taskd.check.traces import alive
from taskd.errors import Code
from taskd.proto.containerd.v1.types import Status
from taskd.runtime.store import DescriptorStore
from taskd.runtime.survival import RECORD
from taskd.runtime.types import Key

theme = Theme("adoption")


class Daemon:
    """What a daemon is to shims whose containers go on: it keeps what they have open."""

    def __init__(self, case: Case, store: DescriptorStore) -> None:
        self.case = case
        self.store = store

    def claims(self, task: Task) -> None:
        """Raises `NotApplicable` if the shim does not say that one can go on with a container."""
        if not (task.bundle.path / RECORD).exists():
            raise NotApplicable(f"it does not claim it: there is no {RECORD} in the bundle")

    async def kill(self, *tasks: Task) -> None:
        """Kill the shim of some, and see that all it has given away is there."""
        for task in tasks:
            self.claims(task)
        await tasks[0].shim.kill()
        for task in tasks:
            with anyio.move_on_after(CALL_SECONDS) as scope:
                await self.store.left(Key(self.case.namespace, task.id))
            self.case.true(not scope.cancelled_caught, "kill -9", "it hangs up", "it does not")
            self.case.true(alive(task.pid), "kill -9", "that the container goes on", "its end")

    async def adopt(self, *tasks: Task) -> None:
        """Have another one go on with them."""
        case, before = self.case, tasks[0].shim
        given = json.dumps({"bundles": [str(task.bundle.path) for task in tasks]}).encode()
        home = before.bundle
        done = await case.run(home, "-id", home.id, "adopt", stdin=given)
        bootstrap = case.bootstrap(done)
        case.equal("adopt: address", before.bootstrap.address, bootstrap.address)
        case.orphaned_sockets.discard(before.socket)
        shim = await case.shim_at(home, bootstrap)
        for task in tasks:
            task.shim = shim
            shim.containers.add(task.id)

    async def bereave(self, *tasks: Task) -> None:
        await self.kill(*tasks)
        await self.adopt(*tasks)


@asynccontextmanager
async def _daemon(case: Case) -> AsyncIterator[Daemon]:
    if not pidfd.tells_exits():
        raise NotApplicable("it takes Linux 6.15")
    path = str(case.folder / "store.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        case.environment[slots.ADDRESS] = path
        async with anyio.create_task_group() as group:
            store = DescriptorStore(group)
            group.start_soon(store.serve, listener)
            try:
                yield Daemon(case, store)
            finally:
                group.cancel_scope.cancel()
        store.close()


def _check(
    name: str, about: str = ""
) -> Callable[[Callable[[Case, Daemon], Awaitable[None]]], Play]:
    """A check with a daemon that keeps what shims have open."""

    def add(play: Callable[[Case, Daemon], Awaitable[None]]) -> Play:
        async def run(case: Case) -> None:
            async with _daemon(case) as daemon:
                await play(case, daemon)

        return theme.check(name, about=about)(run)

    return add


async def _is(case: Case, task: Task, status: Status, exec_id: str = "", pid: int = 0) -> None:
    state = await task.state(exec_id)
    case.equal("State", (status, pid or task.pid), (state.status, state.pid))


@_check("kill -9 of the shim, and adopt: a container that runs, and ends later")
async def _(case: Case, daemon: Daemon) -> None:
    out = case.output()
    task = await case.running(TRAP, stdout=str(out.path))
    case.true(await out.until(b"ready\n", CALL_SECONDS), "the output", "ready", str(out.data))
    for _ in range(2):
        await daemon.bereave(task)
        await _is(case, task, Status.RUNNING)
    await task.kill(signal.SIGUSR1)
    case.equal("Wait", 7, await task.wait())
    case.true(await out.until(b"ended\n", CALL_SECONDS), "the output", "ended", str(out.data))
    case.equal("the output", b"ready\nended\n", out.data)
    case.equal("Delete", 7, (await task.delete()).exit_status)
    kept = daemon.store.has(Key(case.namespace, task.id))
    case.true(not kept, "Delete", "that nothing of it is kept", "that there is")

    def exits() -> list[int]:
        events = [each.event for each in case.receiver.events if each.kind == "exit"]
        return [getattr(each, "exit_status", 0) for each in events]

    await case.receiver.until(lambda _: bool(exits()), CALL_SECONDS)
    case.equal("the events of its exit", [7], exits())


@_check("kill -9 of the shim, and adopt: one that was not started yet")
async def _(case: Case, daemon: Daemon) -> None:
    task = await case.created(EXIT(8))
    daemon.claims(task)
    if not task.pid:
        raise NotApplicable("there is no process before Start")
    await daemon.bereave(task)
    await _is(case, task, Status.CREATED)
    case.equal("Start", task.pid, await task.start())
    case.equal("Wait", 8, await task.wait())


@_check("kill -9 of the shim, and adopt: one that is paused", about="Pause")
async def _(case: Case, daemon: Daemon) -> None:
    task = await case.running()
    daemon.claims(task)
    await task.call("Pause")
    await daemon.bereave(task)
    await _is(case, task, Status.PAUSED)
    await task.call("Resume")
    await _is(case, task, Status.RUNNING)


@_check("kill -9 of the shim, and adopt: one with an exec", about="Exec")
async def _(case: Case, daemon: Daemon) -> None:
    task = await case.running()
    daemon.claims(task)
    await task.exec("two", TRAP)
    await task.exec("three", EXIT(9))
    pid = await task.start("two")
    await daemon.bereave(task)
    await _is(case, task, Status.RUNNING, "two", pid)
    await task.kill(signal.SIGUSR1, "two")
    case.equal("Wait of the exec", 7, await task.wait("two"))
    case.equal("Delete of the exec", 7, (await task.delete("two")).exit_status)
    await task.start("three")
    case.equal("Wait of one that was added before", 9, await task.wait("three"))


@_check("kill -9 of the shim, and adopt: an end that comes between the two")
async def _(case: Case, daemon: Daemon) -> None:
    out = case.output()
    task = await case.running(TRAP, stdout=str(out.path))
    case.true(await out.until(b"ready\n", CALL_SECONDS), "the output", "ready", str(out.data))
    await daemon.kill(task)
    case.kill(task.pid, signal.SIGUSR1)
    case.true(await until(lambda: not alive(task.pid)), "SIGUSR1", "its end", "none")
    await daemon.adopt(task)
    case.equal("Wait", 7, await task.wait())
    await _is(case, task, Status.STOPPED)
    case.true(await out.until(b"ended\n", CALL_SECONDS), "the output", "ended", str(out.data))
    case.equal("the output", b"ready\nended\n", out.data)


@_check("kill -9 of the shim, and adopt: what is fed, and CloseIO")
async def _(case: Case, daemon: Daemon) -> None:
    source, out = case.input(), case.output()
    task = await case.running(CAT(5), stdin=str(source.path), stdout=str(out.path))
    wanted = b""
    for number in range(3):
        piece = b"%d\n" % number * 1000
        wanted += piece
        source.write(piece)
        await out.until(wanted, CALL_SECONDS)
        await daemon.bereave(task)
    await source.aclose()
    await task.call("CloseIO", stdin=True)
    case.equal("Wait", 5, await task.wait())
    case.true(out.data == wanted, "the output", f"{len(wanted)} bytes", f"{len(out.data)} others")


@_check("kill -9 of the shim, and adopt: a terminal")
async def _(case: Case, daemon: Daemon) -> None:
    source, out = case.input(), case.output()
    task = await case.running(SIZE, terminal=True, stdin=str(source.path), stdout=str(out.path))
    source.write(b"one\n")
    case.true(await out.until(b"size ", CALL_SECONDS), "the terminal", "size", str(out.data))
    await daemon.bereave(task)
    await task.call("ResizePty", width=81, height=25)
    source.write(b"two\n")
    wanted = b"size 25 81\r\n"
    case.true(await out.until(wanted, CALL_SECONDS), "the terminal", str(wanted), str(out.data))


@_check("kill -9 of the shim, and adopt: a record that is not whole is not gone on with")
async def _(case: Case, daemon: Daemon) -> None:
    task = await case.running()
    await daemon.kill(task)
    record = task.bundle.path / RECORD
    record.write_bytes(record.read_bytes()[:-1])
    await daemon.adopt(task)
    task.shim.containers.discard(task.id)
    await task.refused("State", Code.NOT_FOUND)
    await case.clean_up(task.bundle)
    case.true(await until(lambda: not alive(task.pid)), "delete", "its end", "it runs")
