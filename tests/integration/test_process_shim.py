"""``io.taskd.process.v1``: host processes as containers, for root and for everybody else."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from harness.daemons import Containerd, Taskd
from harness.generations import GENERATIONS
from harness.leaks import leaving_nothing
from harness.pace import SLOWER
from harness.processes import LIBCS_SIGNALS
from harness.real import AS_NOBODY, NOBODY, need
from taskd_process.cgroup import Cgroup

from taskd import pidfd
from taskd.client import Container, connect
from taskd.errors import FailedPrecondition, NotFound, TaskdError
from taskd.proto.containerd.services.tasks.v1 import (
    CloseIoRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    ListPidsRequest,
    MetricsRequest,
    ResizePtyRequest,
    StartRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.io.containerd.cgroups.v1 import Metrics as MetricsV1
from taskd.proto.io.containerd.cgroups.v2 import Metrics as MetricsV2
from taskd.testing import Daemon

RUNTIME = "io.taskd.process.v1"
SLEEP = ["/bin/sleep", "1000"]
ENV = ["PATH=/usr/bin:/bin"]


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Have the rights of a user, or of root."""
    before = os.geteuid()
    try:
        os.seteuid(0)
        os.setegid(number)
        os.seteuid(number)
        yield
    finally:
        os.seteuid(0)
        os.setegid(before)
        os.seteuid(before)


class Unprivileged(Taskd):
    """A taskd that is not root's."""

    def command(self) -> list[str]:
        return [*AS_NOBODY, *super().command()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"XDG_RUNTIME_DIR": str(self.folder), "HOME": "/nonexistent"}

    def start(self) -> Self:
        with as_user(0):
            return super().start()


@pytest.fixture(scope="module", params=["root", "nobody"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Taskd]:
    """One for all tests."""
    with served(Unprivileged if request.param == "nobody" else Taskd) as running:
        yield running


@contextmanager
def served(kind: type[Taskd], settings: str = "") -> Iterator[Taskd]:
    need("setpriv")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    daemon = kind(folder / "taskd", "--log-level", "debug", settings=settings)
    if kind is Unprivileged:
        for path in (folder, daemon.folder):
            os.chown(path, NOBODY, NOBODY)
    with daemon as running:
        if kind is Unprivileged:
            assert Path(f"/proc/{running.pid}").stat().st_uid == NOBODY
        yield running
    print(daemon.log.read_text())
    shutil.rmtree(folder)


@pytest.fixture
def is_root(daemon: Taskd) -> bool:
    return not isinstance(daemon, Unprivileged)


@pytest.fixture
async def taskd(daemon: Taskd, is_root: bool, namespace: str) -> AsyncIterator[Daemon]:
    """A client with the rights that the daemon has, which has to leave nothing behind."""
    async with using(daemon, is_root, namespace) as user:
        yield user


@asynccontextmanager
async def using(daemon: Taskd, is_root: bool, namespace: str) -> AsyncIterator[Daemon]:
    with (
        leaving_nothing(daemon, namespace),
        as_user(0 if is_root else NOBODY),
        tempfile.TemporaryDirectory() as folder,
    ):
        async with connect(daemon.address, namespace) as client:
            yield Daemon(Path(folder), daemon.address, client)
    assert list(daemon.folder.glob("taskd-shims/*")) == []


def process(args: list[str], **more: Any) -> dict[str, Any]:
    """A specification of a process, for `Daemon.container`."""
    user = {"uid": 0, "gid": 0}  # as clients have it who do not ask who the shim is
    return {"process": {"args": args, "cwd": "/", "env": ENV, "user": user, **more}}


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


async def until_gone(*pids: int) -> None:
    with anyio.fail_after(20):
        while any(alive(pid) for pid in pids):
            await anyio.sleep(0.02)


# --- lifecycle ------------------------------------------------------------------------------


async def test_a_life(taskd: Daemon) -> None:
    command = ["/bin/sh", "-c", "echo hello; echo oh >&2; exit 42"]
    async with taskd.container(RUNTIME, SLEEP, spec=process(command)) as container:
        assert alive(container.pid)  # it waits
        assert container.stdout.take() == b""
        done = await container.run()
        assert (done.code, done.stdout, done.stderr) == (42, b"hello\n", b"oh\n")
        state = await container.state()
        assert (state.status, state.exit_status) == (Status.STOPPED, 42)


async def test_one_that_is_never_started(taskd: Daemon) -> None:
    async with taskd.container(RUNTIME, SLEEP, spec=process(SLEEP)) as container:
        pid = container.pid
    await until_gone(pid)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, 137), (signal.SIGUSR1, 138)]
)
async def test_signals(taskd: Daemon, number: int, status: int) -> None:
    async with taskd.container(RUNTIME, SLEEP, spec=process(SLEEP)) as container:
        await container.start()
        await container.kill(number)
        assert (await container.wait()).code == status
        with pytest.raises(NotFound, match="process already finished"):
            await container.kill(number)


async def test_signals_are_not_blocked_or_ignored(taskd: Daemon) -> None:
    command = ["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    async with taskd.container(RUNTIME, SLEEP, spec=process(command)) as container:
        done = await container.run()
        blocked, ignored = (int(line.split()[1], 16) for line in done.text.splitlines())
        assert (blocked, ignored & ~LIBCS_SIGNALS) == (0, 0)


async def test_execs(taskd: Daemon) -> None:
    async with taskd.container(RUNTIME, SLEEP) as container:
        await container.start()
        first = await container.exec(["/bin/sh", "-c", "echo $$; exit 7"], id="first")
        done = await first.communicate()
        assert (done.code, done.text) == (7, f"{first.pid}\n")
        second = await container.exec(SLEEP, id="second")
        await second.kill(signal.SIGINT)
        assert (await second.wait()).code == 130
        third = await container.exec(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], id="third")
        await container.kill()
        assert (await container.wait()).code == 137
        assert (await third.wait()).code == 137
    await until_gone(first.pid, second.pid, third.pid)


async def test_what_it_leaves_behind_ends_with_it(taskd: Daemon) -> None:
    command = ["/bin/sh", "-c", "sleep 1000 & echo $!; exec 1>&-; sleep 0.2"]
    async with taskd.container(RUNTIME, SLEEP, spec=process(command)) as container:
        await until_gone(int((await container.run()).text))


async def test_kill_all(taskd: Daemon) -> None:
    command = ["/bin/sh", "-c", "sleep 1000 & child=$!; trap '' TERM; echo $child; wait; exit 9"]
    async with taskd.container(RUNTIME, SLEEP, spec=process(command)) as container:
        await container.start()
        child = int(await anext(container.stdout.lines()))
        await container.kill(signal.SIGTERM, everything=True)
        assert (await container.wait()).code == 9
        await until_gone(child)


# --- what the specification says ------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 'exec: "/etc": permission denied'),
        ([], "args must not be empty"),
    ],
)
async def test_a_program_that_cannot_be_run(taskd: Daemon, args: list[str], words: str) -> None:
    with pytest.raises(TaskdError, match=re.escape(words)):
        async with taskd.container(RUNTIME, SLEEP, spec=process(args)):
            pass


async def test_a_folder_that_is_not_there(taskd: Daemon) -> None:
    spec = process(["/bin/true"], cwd="/no/such")
    with pytest.raises(TaskdError, match="/no/such: no such file or directory"):
        async with taskd.container(RUNTIME, SLEEP, spec=spec):
            pass


async def test_an_exec_that_cannot_be_run(taskd: Daemon) -> None:
    async with taskd.container(RUNTIME, SLEEP) as container:
        await container.start()
        process = await container.exec(["/no/such"], start=False)
        with pytest.raises(TaskdError, match="no such file or directory"):
            await process.start()
        await container.kill()
        assert (await container.wait()).code == 137


async def test_environment_folder_and_umask(taskd: Daemon) -> None:
    command = ["sh", "-c", "pwd; umask; env"]
    spec = process(
        command, cwd="/usr", env=["PATH=/bin:/usr/bin", "A=b=c", "EMPTY="], user={"umask": 0o27}
    )
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        cwd, mask, *env = (await container.run()).text.splitlines()
    assert (cwd, mask) == ("/usr", "0027")
    assert set(env) == {"PATH=/bin:/usr/bin", "A=b=c", "EMPTY=", "PWD=/usr"}


async def test_user(taskd: Daemon, is_root: bool) -> None:
    user = {"uid": 1234, "gid": 2345, "additionalGids": [3456, 4567]}
    spec = process(["/usr/bin/id"], user=user)
    if is_root:
        async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
            found = (await container.run()).text.split()
            assert found == ["uid=1234", "gid=2345", "groups=2345,3456,4567"]
    else:
        with pytest.raises(TaskdError, match="to be user 1234:2345 takes root"):
            async with taskd.container(RUNTIME, SLEEP, spec=spec):
                pass


async def test_limits_and_privileges(taskd: Daemon) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec = process(
        ["/bin/sh", "-c", "ulimit -n; ulimit -Hn; grep NoNewPrivs /proc/self/status; "
         "cat /proc/self/oom_score_adj"],
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 77, "hard": min(hard, 99)}],
        noNewPrivileges=True,
        oomScoreAdj=777,
    )  # fmt: skip
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        assert (await container.run()).text.split() == ["77", "99", "NoNewPrivs:", "1", "777"]


async def test_a_limit_that_there_is_not(taskd: Daemon) -> None:
    limits = [{"type": "RLIMIT_PATIENCE", "soft": 1, "hard": 1}]
    spec = process(["/bin/true"], rlimits=limits)
    with pytest.raises(TaskdError, match="unknown rlimit RLIMIT_PATIENCE"):
        async with taskd.container(RUNTIME, SLEEP, spec=spec):
            pass


# --- streams --------------------------------------------------------------------------------


class Task:
    """A task made by hand, for what `taskd.testing` does not do."""

    def __init__(self, taskd: Daemon, name: str, terminal: bool) -> None:
        self.taskd = taskd
        self.paths = {each: taskd.folder / f"{name}-{each}" for each in ("in", "out")}
        for path in self.paths.values():
            os.mkfifo(path)
            path.chmod(0o666)
        self.output = os.open(self.paths["out"], os.O_RDONLY | os.O_NONBLOCK)
        self.request = CreateTaskRequest(
            container_id="test",
            stdin=str(self.paths["in"]),
            stdout=str(self.paths["out"]),
            terminal=terminal,
        )

    async def until(self, text: bytes) -> bytes:
        found = b""
        with anyio.fail_after(20):
            while text not in found:
                with suppress(BlockingIOError):
                    found += os.read(self.output, 65536)
                await anyio.sleep(0.02)
        return found


@pytest.fixture
async def bare(taskd: Daemon) -> AsyncIterator[Any]:
    """Makes a container whose task the test makes, in place of one that is there already."""
    async with AsyncExitStack() as stack:

        async def make(args: list[str], terminal: bool) -> Task:
            spec = process(args, terminal=terminal)
            await stack.enter_async_context(taskd.container(RUNTIME, SLEEP, spec=spec))
            await taskd.client.tasks.delete(DeleteTaskRequest(container_id="test"))
            task = Task(taskd, "task", terminal)
            await taskd.client.tasks.create(task.request)
            await taskd.client.tasks.start(StartRequest(container_id="test"))
            return task

        yield make


async def test_standard_input(taskd: Daemon, bare: Any) -> None:
    task = await bare(["/bin/cat"], terminal=False)
    client = os.open(task.paths["in"], os.O_WRONLY)
    os.write(client, b"hello\n")
    assert await task.until(b"\n") == b"hello\n"
    os.close(client)
    await taskd.client.tasks.close_io(CloseIoRequest(container_id="test", stdin=True))
    assert (await taskd.client.tasks.wait(WaitRequest(container_id="test"))).exit_status == 0
    os.close(task.output)


async def test_a_terminal(taskd: Daemon, bare: Any) -> None:
    task = await bare(["/bin/sh", "-c", "tty; read x; stty size; exit 3"], terminal=True)
    assert (await task.until(b"\n")).startswith(b"/dev/pts/")
    await taskd.client.tasks.resize_pty(ResizePtyRequest(container_id="test", width=132, height=43))
    client = os.open(task.paths["in"], os.O_WRONLY)
    os.write(client, b"go\n")
    assert b"43 132\r\n" in await task.until(b"132")
    os.close(client)
    assert (await taskd.client.tasks.wait(WaitRequest(container_id="test"))).exit_status == 3
    os.close(task.output)


# --- the rest -------------------------------------------------------------------------------


def cgroup(name: str = "") -> dict[str, Any]:
    """As clients name it: in one of the namespace's."""
    return {"cgroupsPath": f"/test-{name or uuid.uuid4().hex}/one"}


async def test_pause(taskd: Daemon, is_root: bool) -> None:
    spec = process(["/bin/sh", "-c", "while :; do echo x; sleep 0.01; done"])
    if is_root:
        spec["linux"] = cgroup()
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        await container.start()
        await container.pause()
        assert (await container.state()).status is Status.PAUSED
        await anyio.sleep(0.1)  # what was on its way has been written
        container.stdout.take()
        await anyio.sleep(0.3)
        assert not container.stdout.take()
        await container.resume()
        with anyio.fail_after(20):
            assert await container.stdout.receive()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("everyone", [True, False])
async def test_what_is_paused_can_be_killed(taskd: Daemon, grouped: bool, everyone: bool) -> None:
    spec = process(["/bin/sh", "-c", "sleep 1000 & wait"])
    if grouped:
        spec["linux"] = cgroup()
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        await container.start()
        one, two, three = [await container.exec(SLEEP, start=False) for _ in range(3)]
        await one.start()
        await two.start()
        await container.pause()
        with pytest.raises(TaskdError, match="cannot exec in a paused container"):
            await three.start()
        with anyio.fail_after(20):
            await one.kill(signal.SIGKILL)
            assert (await one.wait()).code == 137
            assert (await container.state()).status is Status.PAUSED
            await container.kill(everything=everyone)
            assert (await container.wait()).code == 137
            assert (await two.wait()).code == 137


@pytest.mark.parametrize("below", ["", "/below"])
async def test_a_cgroup_of_somebody_elses(taskd: Daemon, is_root: bool, below: str) -> None:
    """Of a containerd's beside it, say, whose container has the same id."""
    if not is_root:
        return  # who has no cgroup
    linux = cgroup()
    other = Cgroup.make(linux["cgroupsPath"] + below)
    assert other is not None
    with subprocess.Popen(SLEEP) as bystander:
        other.add(bystander.pid)
        for args in (SLEEP, ["/no/such"]):
            spec = process(args) | {"linux": linux | {"resources": {"pids": {"limit": 1}}}}
            with pytest.raises(TaskdError, match=r"is not empty: 1 process\(es\) found"):
                async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
                    await container.start()
            assert bystander.poll() is None
            assert other.pids() == [bystander.pid]
        bystander.kill()
    assert Cgroup.make(linux["cgroupsPath"]) is not None
    for each in filter(None, (other, Cgroup.existing(linux["cgroupsPath"]))):
        each.remove()


@pytest.mark.parametrize("path", ["", "/", "/.", "./.", "//", "/../etc", "a/../.."])
def test_what_is_nobodys_own_is_no_cgroup(path: str) -> None:
    assert Cgroup.existing(path) is None


@pytest.mark.parametrize("grouped", [True, False])
async def test_pids_and_usage(taskd: Daemon, is_root: bool, grouped: bool) -> None:
    spec = process(["/bin/sh", "-c", "sleep 1000 & echo $!; wait"])
    if grouped:
        spec["linux"] = cgroup()
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        await container.start()
        execed = await container.exec(SLEEP)
        child = int(await anext(container.stdout.lines()))
        expected = {container.pid, child, execed.pid}
        found = (await taskd.client.tasks.list_pids(ListPidsRequest(container_id="test"))).processes
        assert {process.pid for process in found} == expected
        assert [bool(p.info) for p in found if p.pid == execed.pid] == [True]
        answer = await taskd.client.tasks.metrics(MetricsRequest())
        (metric,) = answer.metrics
        assert metric.data is not None
        kind = MetricsV1 if metric.data.type_url.endswith("v1.Metrics") else MetricsV2
        usage = kind.parse(metric.data.value)
        assert usage.pids is not None
        assert usage.pids.current == 3
        assert usage.memory is not None


async def test_limits_of_a_cgroup(taskd: Daemon, is_root: bool) -> None:
    name = uuid.uuid4().hex
    limits = {"pids": {"limit": 40}, "memory": {"limit": 64 << 20}, "cpu": {"shares": 512}}
    spec = process(SLEEP) | {"linux": cgroup(name) | {"resources": limits}}
    update = UpdateTaskRequest(
        container_id="test",
        resources=AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            value=json.dumps({"pids": {"limit": 50}}).encode(),
        ),
    )
    async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
        await container.start()
        if not is_root:
            with pytest.raises(FailedPrecondition, match="limits take a cgroup"):
                await taskd.client.tasks.update(update)
            return
        root = Path("/sys/fs/cgroup")
        above = [*root.glob(f"test-{name}"), *root.glob(f"*/test-{name}")]
        folders = [folder / "one" for folder in above]
        assert folders

        def value(*files: str) -> str:
            found = [folder / file for folder in folders for file in files]
            return next(path for path in found if path.exists()).read_text().strip()

        assert value("pids.max") == "40"
        assert value("memory.limit_in_bytes", "memory.max") == str(64 << 20)
        assert str(container.pid) in value("cgroup.procs").split()
        await taskd.client.tasks.update(update)
        assert value("pids.max") == "50"
    assert not any(folder.exists() for folder in above)


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu": {"quota": 1}},
        {"cpu": {"period": 1}},
        {"memory": {"limit": "much"}},
        {"memory": 7},
        ["none"],
    ],
    ids=str,
)
async def test_limits_that_cannot_be(taskd: Daemon, is_root: bool, limits: Any) -> None:
    if not is_root:
        return  # who has no cgroup
    linux = cgroup()
    spec = process(SLEEP) | {"linux": linux | {"resources": limits}}
    with anyio.fail_after(20), pytest.raises(TaskdError, match="failed to create shim task: "):
        async with taskd.container(RUNTIME, SLEEP, spec=spec) as container:
            await container.start()
    assert Cgroup.existing(linux["cgroupsPath"]) is None


async def test_the_daemon_is_restarted(daemon: Taskd, taskd: Daemon) -> None:
    async with taskd.container(RUNTIME, SLEEP) as container:
        await container.start()
        daemon.kill()
        os.kill(container.pid, signal.SIGTERM)
        daemon.start()
        taskd.client.channel.close()  # the next call makes a new connection
        assert (await container.wait()).code == 143


async def test_its_shim_is_killed(daemon: Taskd, is_root: bool, namespace: str) -> None:
    settings = "[shims]\nadopt = false\n"
    with served(type(daemon), settings) as mortal:
        async with using(mortal, is_root, namespace) as taskd, beginning(taskd) as (one, pids):
            (shim,) = shims(namespace)
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    assert (await one.wait()).code == 137

                group.start_soon(wait)
                await anyio.sleep(0.1)
                os.kill(shim, signal.SIGKILL)
            await until_gone(*pids)


@pytest.mark.skipif(
    not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
)
async def test_it_survives_its_shim(taskd: Daemon, namespace: str) -> None:
    """Whoever's it is, and if nobody has set anything."""
    async with beginning(taskd) as (container, pids):
        (shim,) = shims(namespace)
        os.kill(shim, signal.SIGKILL)
        state = await container.state()
        assert (state.pid, state.status) == (container.pid, Status.RUNNING)
        assert shim not in shims(namespace)
        assert all(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        execed = await container.exec(["/bin/sh", "-c", "exit 5"])
        assert (await execed.wait()).code == 5
        await container.kill(everything=True)
        assert (await container.wait()).code == 137
        await until_gone(*pids)


@asynccontextmanager
async def beginning(taskd: Daemon) -> AsyncIterator[tuple[Container, tuple[int, ...]]]:
    """A container, and what runs in it: itself, what it has started, and an exec."""
    command = ["/bin/sh", "-c", "sleep 1000 & echo $!; wait"]
    async with taskd.container(RUNTIME, SLEEP, spec=process(command)) as container:
        await container.start()
        execed = await container.exec(SLEEP)
        child = int(await anext(container.stdout.lines()))
        yield container, (container.pid, child, execed.pid)


def shims(namespace: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"containerd-shim-process-v1 -namespace " + namespace.encode()):
            found.append(int(folder.name))
    return found


# --- under containerd -----------------------------------------------------------------------


@pytest.fixture(params=GENERATIONS, ids=str)
def ctr(request: pytest.FixtureRequest, folder: Path, namespace: str) -> Iterator[Any]:
    need("containerd", "ctr")
    (folder / "rootfs").mkdir()
    folders = [Path(sys.executable).parent, request.param.binaries()]
    path = ":".join([*(str(each) for each in folders if each), os.environ["PATH"]])
    with (
        Containerd(folder / "containerd", path=path) as containerd,
        leaving_nothing(containerd, namespace),
    ):

        def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            return containerd.ctr(*arguments, namespace=namespace, check=check)

        yield run


def test_under_containerd(ctr: Any, folder: Path) -> None:
    begin = ("run", "--runtime", RUNTIME, "--rootfs")
    rootfs = str(folder / "rootfs")
    done = ctr(*begin, "--rm", rootfs, "one", "/bin/sh", "-c", "echo hello; exit 42", check=False)
    assert (done.returncode, done.stdout) == (42, "hello\n"), done.stderr
    ctr(*begin, "--detach", rootfs, "two", *SLEEP)
    done = ctr("task", "exec", "--exec-id", "x", "two", "/bin/echo", "inside")
    assert done.stdout == "inside\n"
    ctr("task", "pause", "two")
    assert "PAUSED" in ctr("task", "ls").stdout
    ctr("task", "resume", "two")
    assert ctr("task", "metrics", "two").stdout
    ctr("task", "kill", "--signal", "SIGKILL", "two")
    deadline = time.monotonic() + 20 * SLOWER
    while "STOPPED" not in ctr("task", "ls").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = ctr("task", "delete", "two")
    assert "exit code 137" in done.stderr
    ctr("container", "delete", "two")
    done = ctr(*begin, "--rm", rootfs, "three", "/no/such", check=False)
    assert done.returncode == 1
    assert "stat /no/such: no such file or directory" in done.stderr
    ctr("container", "delete", "three", check=False)
