"""A shim of ours is killed while this or that is on its way in a container, which goes on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.survivors import OCI, PROCESS
from harness.client import Client as RawClient
from harness.daemons import Taskd
from harness.generations import criu
from harness.leaks import leaving_nothing
from harness.real import need

from taskd import pidfd
from taskd.client import Client, Container, Process, connect
from taskd.errors import TaskdError
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.tasks.v1 import CreateTaskRequest
from taskd.proto.containerd.v1.types import Status
from taskd.proto.taskd.v1 import ListShimsRequest, ShimsStub

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
    ),
]
SECONDS = 100
PIPE = 1 << 16
KILLED = 128 + signal.SIGKILL
BOTH = pytest.mark.parametrize("runtime", [OCI, PROCESS])
TERMINAL = pytest.mark.parametrize("tty", [False, True], ids=["pipes", "a terminal"])


@pytest.fixture(scope="module")
def surviving() -> Iterator[Taskd]:
    """One daemon for all: each test has processes of its own, as it has a namespace."""
    need("runc", "busybox")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    settings = '[shims]\nadopt = true\npool = 10\nidle = "0.5s"\n'
    path = f"{folder}:{os.environ['PATH']}"
    hold = Hold(folder / "d" / "hold")
    made = f"ls {folder}/d/root/checkpoints/*/inventory.img"
    script = f"""#!/bin/sh
[ -e {folder}/d/hold/before ] && {{ {hold.script}; }}
{criu()}/criu "$@"; status=$?
[ -e {folder}/d/hold/after ] && {made} > {os.devnull} && {{ {hold.script}; }}
exit $status
"""
    (folder / "criu").write_text(script)
    (folder / "criu").chmod(0o755)
    try:
        with Taskd(folder / "d", "--log-level", "debug", path=path, settings=settings) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def user(surviving: Taskd, namespace: str) -> AsyncIterator[Client]:
    """A client, of whose containers nothing may be left."""
    written = surviving.log.stat().st_size
    with leaving_nothing(surviving, namespace):
        async with connect(surviving.address, namespace) as client:
            yield client
            for container in await client.list():
                await container.leave()
    # Shown if the test fails.
    print(surviving.log.read_bytes()[written:].decode())


async def shim_of(user: Client, container: Container) -> int:
    """Pid of the process that serves it, once it has told that."""
    key = (user.namespace, container.id)
    async with asyncio.timeout(SECONDS):
        while True:
            found = (await ShimsStub(user.channel).list(ListShimsRequest())).shims
            for shim in found:
                if shim.pid and key in {(who.namespace, who.id) for who in shim.tenants}:
                    return int(shim.pid)
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    """Wait until a process, which is to end, has done so."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(SECONDS):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


async def kill_shim(user: Client, container: Container) -> None:
    pid = await shim_of(user, container)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)


async def bereave(user: Client, container: Container) -> None:
    """Kill its shim, and wait until another one goes on with it."""
    await kill_shim(user, container)
    await container.state()


@contextmanager
def held(daemon: Taskd) -> Iterator[None]:
    """The daemon does nothing meanwhile."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def reads(process: Process, wanted: str) -> str:
    """What it writes, up to `wanted`."""
    found = ""
    async with asyncio.timeout(SECONDS):
        while wanted not in found:
            piece = await process.stdout.receive()
            assert piece, f"the end came after {found!r}"
            found += piece.decode()
    return found


async def told(user: Client, container: Container) -> list[str]:
    """The steps of its processes as they were told: what, of which exec, and how it has ended."""
    found = []
    async with user.events("topic~=/tasks/", after=0, follow=False) as events:
        async for event in events:
            if event.container_id == container.id:
                message = event.message
                name = getattr(message, "exec_id", "") or getattr(message, "id", "")
                of = f" {name}" if name not in ("", container.id) else ""
                how = f" {message.exit_status}" if event.topic == "/tasks/exit" else ""
                found.append(f"{event.topic.removeprefix('/tasks/')}{of}{how}")
    return found


async def ends(user: Client, container: Container, status: int, *between: str) -> None:
    """It must end with that status, and each step be told of once; then it is removed."""
    assert (await container.wait(SECONDS)).code == status
    await container.delete_task()
    steps = await told(user, container)
    # What an author's shim alone tells is lost if that is killed before it has done so.
    steps = [each for each in steps if each not in ("paused", "resumed", "checkpointed")]
    assert steps == ["create", "start", *between, f"exit {status}", "delete"]
    await container.delete()


# --- streams --------------------------------------------------------------------------------

ECHO = "while read line; do [ $line = quit ] && exit 3; stty size; echo got $line; done; exit 4"


async def says(who: Process, word: str, size: str) -> None:
    await who.stdin.write(f"{word}\n")
    assert f"{size}\r\ngot {word}\r\n" in await reads(who, f"got {word}\r\n")


@BOTH
async def test_a_terminal_and_its_clients(user: Client, rootfs: Path, runtime: str) -> None:
    async with connect(user.address, user.namespace) as first:
        container = await first.run(
            rootfs, ["/bin/sh", "-c", ECHO], runtime=runtime, tty=True, stdin=True
        )
        await container.resize(81, 25)
        await says(container, "one", "25 81")
        await bereave(user, container)
        # Who was attached still is.
        await says(container, "two", "25 81")
        await container.resize(100, 30)
        await says(container, "three", "30 100")
    await bereave(user, container)
    # And others may come.
    container = await user.get(container.id)
    await container.attach()
    await says(container, "four", "30 100")
    await bereave(user, container)
    await says(container, "five", "30 100")
    await container.stdin.write("quit\n")
    await ends(user, container, 3)


GIVEN = b"".join(b"%d\n" % number for number in range(100_000))
CAT = ("/bin/sh", "-c", "cat; exit 5")


async def comes_through_deaths(user: Client, container: Container) -> bytes:
    """What it writes up to its end, while shims die in which it is on its way."""
    found = b""
    for part in (1, 2, 3):
        while len(found) < part * len(GIVEN) // 4:
            piece = await container.stdout.receive()
            assert piece
            found += piece
        await until(lambda: waiting(container.stdout.path) > PIPE - 4096)
        await bereave(user, container)
    container.stdout.lift()
    return found + await container.stdout.read()


def waiting(fifo: Path) -> int:
    """Bytes in it that nobody has read."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        found = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    finally:
        os.close(descriptor)
    return int.from_bytes(found, sys.byteorder)


@BOTH
async def test_what_it_is_fed(user: Client, rootfs: Path, runtime: str) -> None:
    """All of it comes, in order, and its end, though nobody is in a hurry to take it."""
    container = await user.create(rootfs, CAT, runtime=runtime, stdin=True)
    container.stdout.limit = 1
    await container.start()
    feeding = asyncio.create_task(container.stdin.write(GIVEN))
    coming = asyncio.create_task(comes_through_deaths(user, container))
    await feeding
    await container.stdin.aclose()
    assert await coming == GIVEN
    await ends(user, container, 5)


@BOTH
async def test_what_it_is_fed_from_a_file(
    user: Client, rootfs: Path, tmp_path: Path, runtime: str
) -> None:
    """Which has its end where that has it, and nothing is left out before."""
    file, output = tmp_path / "file", tmp_path / "output"
    file.write_bytes(GIVEN)
    os.mkfifo(output)
    raw = RawClient(user.channel, rootfs)
    await raw.container("one", *CAT, runtime=runtime)
    task = CreateTaskRequest(container_id="one", stdin=str(file), stdout=str(output))
    await raw.tasks.create(task)
    container = await user.get("one")
    await container.attach()
    container.stdout.limit = 1
    await container.start()
    assert await comes_through_deaths(user, container) == GIVEN
    await ends(user, container, 5)


WRITER = """
n=0; echo 0
while read more; do
    [ $more = quit ] && exit 6
    more=$((n + more))
    while [ $n -lt $more ]; do n=$((n + 1)); echo $n; done
done
"""
FLOOD = 200_000
LOST = 1 << 16
"""Bytes that may be lost with a process: docs/shims.md."""


async def writes_through_deaths(
    user: Client, container: Container, lines: Callable[[], Awaitable[list[str]]]
) -> None:
    """What it writes must be in its log, each line once and in order, though its shims die."""
    wrote = 0
    for more in (0, 200, 200, 200):
        if more:
            await container.stdin.write(f"{more}\n")
        wrote += more
        async with asyncio.timeout(SECONDS):
            while (await lines())[-1:] != [str(wrote)]:
                await asyncio.sleep(0.05)
        await bereave(user, container)
    await container.stdin.write("quit\n")
    assert (await container.wait(SECONDS)).code == 6
    assert await lines() == [str(number) for number in range(wrote + 1)]
    await ends(user, container, 6)


@BOTH
@TERMINAL
async def test_a_logger(user: Client, rootfs: Path, runtime: str, tty: bool) -> None:
    """``binary://``: a program of its own, which goes on as well."""
    script = f"{'stty -echo; ' if tty else ''}{WRITER}"
    container = await user.run(
        rootfs, ["/bin/sh", "-c", script], runtime=runtime, tty=tty, stdin=True, output="log"
    )

    async def lines() -> list[str]:
        return (await container.logs().text()).split()

    await writes_through_deaths(user, container, lines)


@BOTH
async def test_nobody_waits_for_the_logger_of_what_never_ran(
    user: Client, rootfs: Path, runtime: str
) -> None:
    """The daemon, which keeps the other ends of its pipes, lets go of them first."""
    container = await user.create(rootfs, ["/bin/true"], runtime=runtime, output="log")
    began = asyncio.get_running_loop().time()
    await container.delete(force=True)
    # It is given ten seconds before it is ended.
    assert asyncio.get_running_loop().time() - began < 8


@BOTH
@TERMINAL
async def test_a_log_file(
    user: Client, rootfs: Path, tmp_path: Path, runtime: str, tty: bool
) -> None:
    """``file://``."""
    log = tmp_path / "log"
    script = f"{'stty -echo; ' if tty else ''}{WRITER}"
    container = await user.run(
        rootfs, ["/bin/sh", "-c", script], runtime=runtime, tty=tty, stdin=True, output=log
    )

    async def lines() -> list[str]:
        return log.read_text().split()

    await writes_through_deaths(user, container, lines)


@TERMINAL
async def test_a_death_amid_much_output(
    user: Client, rootfs: Path, tmp_path: Path, tty: bool
) -> None:
    """What was on its way in the dead process may be lost, in one piece; nothing comes twice."""
    log = tmp_path / "log"
    script = f"seq {FLOOD}; exit 7"
    container = await user.run(rootfs, ["/bin/sh", "-c", script], runtime=OCI, tty=tty, output=log)
    await until(lambda: log.stat().st_size > 0)
    await bereave(user, container)
    assert (await container.wait(SECONDS)).code == 7
    await ends(user, container, 7)
    end = b"\r\n" if tty else b"\n"
    wanted = b"".join(b"%d%s" % (number, end) for number in range(1, FLOOD + 1))
    came = log.read_bytes()
    print(f"{len(wanted) - len(came)} bytes lost")
    assert 0 <= len(wanted) - len(came) <= LOST
    # It begins as what was wanted, and ends as that does.
    same = next((at for at in range(len(came)) if came[at] != wanted[at]), len(came))
    assert wanted.endswith(came[same:])


# --- processes ------------------------------------------------------------------------------

SERVE = "trap 'echo ended; exit 7' TERM; echo begun; while :; do sleep 0.05; done"
STARTED = ("exec-added two", "exec-started two")


@BOTH
@TERMINAL
async def test_an_exec_that_runs(user: Client, rootfs: Path, runtime: str, tty: bool) -> None:
    container = await user.run(rootfs, ["/bin/sleep", "1000"], runtime=runtime)
    process = await container.exec(["/bin/sh", "-c", SERVE], id="two", tty=tty)
    await reads(process, "begun")
    await bereave(user, container)
    state = await process.state()
    assert (state.pid, state.status) == (process.pid, Status.RUNNING)
    waiting = asyncio.create_task(process.wait(SECONDS))
    await bereave(user, container)
    if tty:
        await process.resize(81, 25)
    await process.kill(signal.SIGTERM)
    assert (await waiting).code == 7
    assert (await reads(process, "ended")).strip() == "ended"
    await process.delete()
    # There is room for others.
    async with container.exec(["/bin/echo", "more"], id="three", start=False) as more:
        assert (await more.run()).stdout == b"more\n"
    await container.kill()
    more_steps = ("exec-added three", "exec-started three", "exit three 0")
    await ends(user, container, KILLED, *STARTED, "exit two 7", *more_steps)


@BOTH
@pytest.mark.parametrize("whose", ["its own", "an exec's"])
async def test_an_end_before_anybody_goes_on(
    surviving: Taskd, user: Client, rootfs: Path, runtime: str, whose: str
) -> None:
    """How it came about is known all the same, and what it has written last is there."""
    if whose == "its own":
        container = await user.run(rootfs, ["/bin/sh", "-c", SERVE], runtime=runtime)
        process: Process = container
    else:
        container = await user.run(rootfs, ["/bin/sleep", "1000"], runtime=runtime)
        process = await container.exec(["/bin/sh", "-c", SERVE], id="two")
    await reads(process, "begun")
    waiting = asyncio.create_task(process.wait(SECONDS))
    shim = await shim_of(user, container)
    with held(surviving):
        os.kill(shim, signal.SIGKILL)
        await gone(shim)
        os.kill(process.pid, signal.SIGTERM)
        await gone(process.pid)
    assert (await waiting).code == 7
    assert await reads(process, "ended\n") == "ended\n"
    if process is container:
        await ends(user, container, 7)
        return
    assert (await process.state()).exit_status == 7
    await process.delete()
    await container.kill()
    await ends(user, container, KILLED, *STARTED, "exit two 7")


MEANWHILE = 0.3
"""Seconds in which whoever goes on has begun to, if the machine has time for it."""


class Hold:
    """A program that is held up, before it begins or when it is done."""

    def __init__(self, folder: Path) -> None:
        self._here, self._on, self._folder = folder / "here", folder / "on", folder

    def begin(self, moment: str) -> None:
        (self._folder / moment).touch()

    @property
    def script(self) -> str:
        """What it does meanwhile, as a shell has it."""
        return f": > {self._here}; while [ ! -e {self._on} ]; do sleep 0.01; done"

    async def comes(self) -> None:
        """Wait until it is there."""
        await until(self._here.exists)

    def go_on(self) -> None:
        self._on.touch()


def runc(folder: Path, command: str, moment: str) -> tuple[Hold, Options]:
    """One of whose commands is held up, and the options that name it."""
    hold, path, real = Hold(folder), folder / "runc", shutil.which("runc")
    held_up = {
        "before": f'{hold.script}; exec {real} "$@"',
        "after": f'{real} "$@"; status=$?; {hold.script}; exit $status',
    }[moment]
    path.write_text(
        f'#!/bin/sh\ncase " $* " in *" {command} "*) {held_up};; esac\nexec {real} "$@"\n'
    )
    path.chmod(0o755)
    return hold, Options(binary_name=str(path))


MOMENTS = pytest.mark.parametrize("moment", ["before", "after"])


@MOMENTS
@TERMINAL
async def test_an_exec_that_is_just_being_started(
    user: Client, rootfs: Path, tmp_path: Path, moment: str, tty: bool
) -> None:
    """It runs once, or not at all."""
    hold, options = runc(tmp_path, "exec", moment)
    container = await user.run(rootfs, ["/bin/sleep", "1000"], runtime=OCI, runtime_options=options)
    process = await container.exec(["/bin/sh", "-c", SERVE], id="two", tty=tty, start=False)
    starting = asyncio.create_task(process.start())
    await hold.comes()
    await kill_shim(user, container)
    await asyncio.sleep(MEANWHILE)
    hold.go_on()
    steps = ["exec-added two"]
    if tty and moment == "before":
        # Nobody is there to be given the terminal.
        with pytest.raises(TaskdError):
            await starting
    else:
        assert await starting == (await process.state()).pid
        status = 7
        if tty:
            status = 128 + signal.SIGHUP  # it has gone with the shim
        else:
            assert await reads(process, "begun\n") == "begun\n"
            await process.kill(signal.SIGTERM)
            assert await reads(process, "ended\n") == "ended\n"
        assert (await process.wait(SECONDS)).code == status
        steps += ["exec-started two", f"exit two {status}"]
    await process.delete()
    await container.kill()
    await ends(user, container, KILLED, *steps)


TICK = "trap 'exit 8' TERM; while :; do echo >> {file}; sleep 0.02; done"


@BOTH
async def test_one_that_is_paused(user: Client, rootfs: Path, tmp_path: Path, runtime: str) -> None:
    """It does nothing meanwhile."""
    file = tmp_path / "ticks"
    container = await user.run(
        rootfs,
        ["/bin/sh", "-c", TICK.format(file=file)],
        runtime=runtime,
        mounts=[f"{tmp_path}:{tmp_path}"],
    )
    await until(file.exists)
    await container.pause()
    ticks = file.stat().st_size
    await bereave(user, container)
    assert (await container.state()).status == Status.PAUSED
    assert file.stat().st_size == ticks
    await container.resume()
    await until(lambda: file.stat().st_size > ticks)
    await container.pause()
    await bereave(user, container)
    await container.resume()
    await container.kill(signal.SIGTERM)
    await ends(user, container, 8)


@MOMENTS
@pytest.mark.parametrize("command", ["pause", "resume"])
async def test_one_that_is_just_being_paused_or_resumed(
    user: Client, rootfs: Path, tmp_path: Path, command: str, moment: str
) -> None:
    """It runs, whatever its runtime was about to do."""
    file = tmp_path / "ticks"
    hold, options = runc(tmp_path, command, moment)
    container = await user.run(
        rootfs,
        ["/bin/sh", "-c", TICK.format(file=file)],
        runtime=OCI,
        runtime_options=options,
        mounts=[f"{tmp_path}:{tmp_path}"],
    )
    await until(file.exists)
    if command == "resume":
        await container.pause()
    doing = asyncio.create_task(getattr(container, command)())
    await hold.comes()
    await kill_shim(user, container)
    await asyncio.sleep(MEANWHILE)
    hold.go_on()
    with pytest.raises(TaskdError):
        await doing
    assert (await container.state()).status == Status.RUNNING
    ticks = file.stat().st_size
    await until(lambda: file.stat().st_size > ticks)
    await container.pause()
    ticks = file.stat().st_size
    await container.resume()
    await until(lambda: file.stat().st_size > ticks)
    await container.kill(signal.SIGTERM)
    await ends(user, container, 8)


@pytest.fixture
def criu_holds(surviving: Taskd) -> Iterator[Hold]:
    """CRIU may be held up as well."""
    folder = surviving.folder / "hold"
    folder.mkdir()
    yield Hold(folder)
    shutil.rmtree(folder)


@MOMENTS
@pytest.mark.parametrize("ending", [False, True], ids=["goes on", "is to end"])
async def test_one_of_which_a_checkpoint_is_made(
    surviving: Taskd,
    user: Client,
    rootfs: Path,
    tmp_path: Path,
    criu_holds: Hold,
    moment: str,
    ending: bool,
) -> None:
    """There is none then, and the container goes on, if it has not ended with it."""
    file = tmp_path / "ticks"
    container = await user.run(
        rootfs,
        ["/bin/sh", "-c", TICK.format(file=file)],
        runtime=OCI,
        mounts=[f"{tmp_path}:{tmp_path}"],
        network="host",
    )
    await until(file.exists)
    criu_holds.begin(moment)
    doing = asyncio.create_task(container.checkpoint(exit=ending))
    await criu_holds.comes()
    await kill_shim(user, container)
    await asyncio.sleep(MEANWHILE)
    criu_holds.go_on()
    with pytest.raises(TaskdError):
        await doing
    assert not any((surviving.root / "checkpoints").iterdir())
    if ending and moment == "after":
        await ends(user, container, KILLED)
        return
    assert (await container.state()).status == Status.RUNNING
    ticks = file.stat().st_size
    await until(lambda: file.stat().st_size > ticks)
    assert len(await container.checkpoint()) == 2
    ticks = file.stat().st_size
    await until(lambda: file.stat().st_size > ticks)
    await container.kill(signal.SIGTERM)
    await ends(user, container, 8)


# --- a process that hangs -------------------------------------------------------------------

WAITS = "trap 'exit {status}' TERM; sleep 1000 & wait"


async def test_one_that_is_stopped_and_then_killed(user: Client, rootfs: Path) -> None:
    """Its ten containers wait as long as it is stopped, nobody else does, and then they go on."""

    async def run(status: int) -> Container:
        script = WAITS.format(status=status)
        return await user.run(rootfs, ["/bin/sh", "-c", script], runtime=PROCESS)

    ten = [await run(status) for status in range(1, 11)]
    shim = await shim_of(user, ten[0])
    other = await run(11)
    assert [await shim_of(user, each) == shim for each in (*ten, other)] == [True] * 10 + [False]
    ends_of_ten = [asyncio.create_task(each.wait(SECONDS)) for each in ten]
    os.kill(shim, signal.SIGSTOP)
    try:
        killing = asyncio.create_task(ten[0].kill(signal.SIGTERM))
        asking = asyncio.create_task(ten[1].pids())
        states = await asyncio.gather(*(each.state() for each in (*ten, other)))
        assert [each.status for each in states] == [Status.UNKNOWN] * 10 + [Status.RUNNING]
        for each in (other, await run(12)):
            async with each.exec(["/bin/echo", "here"], start=False) as process:
                assert (await process.run()).stdout == b"here\n"
            await each.kill(signal.SIGTERM)
            await each.wait(SECONDS)
            await each.delete()
        assert not any(each.done() for each in (killing, asking, *ends_of_ten))
    finally:
        os.kill(shim, signal.SIGKILL)
    # What may be asked again is; it is not known whether the other came through.
    assert ten[1].pid in await asking
    with pytest.raises(TaskdError):
        await killing
    for container in ten:
        state = await container.state()
        assert (state.pid, state.status) == (container.pid, Status.RUNNING)
    for status, (container, end) in enumerate(zip(ten, ends_of_ten, strict=True), 1):
        await container.kill(signal.SIGTERM)
        assert (await end).code == status
        await ends(user, container, status)
