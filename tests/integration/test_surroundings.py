"""What daemon and shims were started with: who is to have it, and who is not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from harness.client import Client
from harness.daemons import Taskd, client
from harness.leaks import leaving_nothing, traces
from harness.processes import LIBCS_SIGNALS
from harness.real import need

from taskd.proto.containerd.services.tasks.v1 import GetRequest

SOFT = 96
"""Descriptors for each process; a daemon alone has some forty."""
IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
OUTLIVED = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1, signal.SIGALRM, signal.SIGIO),
    *(signal.SIGPROF, signal.SIGVTALRM, signal.SIGXCPU, signal.SIGPWR, signal.SIGRTMIN, 64),
)
SHIMS = ("io.taskd.process.v1", "io.taskd.oci.v1", "io.containerd.runc.v2")


class Nohup(Taskd):
    """Started as by ``nohup``, in the background, with few descriptors, by a service manager."""

    def command(self) -> list[str]:
        ignoring = (
            "import os, resource, signal, sys\n"
            f"for each in {[int(each) for each in IGNORED]}: signal.signal(each, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({SOFT}, 4096))\n"
            "os.umask(0o027)\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        return [sys.executable, "-c", ignoring, *super().command()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"NOTIFY_SOCKET": str(self.folder / "notify")}


@pytest.fixture(params=["warm", "cold"])
def taskd(request: pytest.FixtureRequest, folder: Path, namespace: str) -> Iterator[Taskd]:
    need("runc", "busybox", "containerd-shim-runc-v2", "prlimit")
    settings = f"[shims]\nwarm = {str(request.param == 'warm').lower()}\n"
    taskd = Nohup(folder / "taskd", "--log-level", "debug", settings=settings)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        taskd,
        leaving_nothing(taskd, namespace),
    ):
        manager.bind(str(taskd.folder / "notify"))
        yield taskd


def status(pid: int, field: str) -> str:
    found = re.search(f"^{field}:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def files(pid: int) -> str:
    found = re.search(r"^Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.M)
    assert found is not None
    return found[1]


def shims(daemon: Taskd, namespace: str) -> list[int]:
    found = traces(daemon.state, daemon.root, namespace).processes
    return [int(each.split()[0]) for each in found if "-address" in each]


async def test_what_a_container_gets(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    assert files(taskd.pid) == "4096"
    assert status(taskd.pid, "Umask") == "0077"
    async with client(taskd.address, namespace) as channel:
        ask = Client(channel, rootfs)
        for number, runtime in enumerate(SHIMS):
            name = f"c{number}"
            pid = await ask.start(name, "/bin/sleep", "1000", runtime=runtime)
            assert int(status(pid, "SigIgn"), 16) & ~LIBCS_SIGNALS == 0, runtime
            if "process" in runtime:  # runc 1.1 raises its own, and forgets what it was
                assert files(pid) == str(SOFT)
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert status(pid, "Umask") == "0022"  # runc's own
        for shim in shims(taskd, namespace):
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{shim}/environ").read_bytes()
            assert status(shim, "Umask") == "0027"
        for number in range(len(SHIMS)):
            assert await ask.end(f"c{number}") == 137


async def test_signals_end_nobody(taskd: Taskd, namespace: str, rootfs: Path) -> None:
    async with client(taskd.address, namespace) as channel:
        ask = Client(channel, rootfs)
        pids = [
            await ask.start(f"c{number}", "/bin/sleep", "1000", runtime=runtime)
            for number, runtime in enumerate(SHIMS[:2])
        ]
        for victim in (taskd.pid, *shims(taskd, namespace), *helpers(taskd)):
            for number in OUTLIVED:
                os.kill(victim, number)
                await anyio.sleep(0.05)
        for number, pid in enumerate(pids):
            found = await ask.tasks.get(GetRequest(container_id=f"c{number}"))
            assert found.process is not None
            assert (found.process.pid, found.process.status.name) == (pid, "RUNNING")
        with anyio.fail_after(10):  # the shims' come through their logs
            while len(re.findall(r"shim \S+: .*stacks of", taskd.log.read_text())) < 4:
                await anyio.sleep(0.05)
        log = taskd.log.read_text()
        assert "Current thread" in log
        assert re.search(r"taskd\.stacks: stacks of \d+ tasks", log)
        assert "SIGHUP: ignored" in log
        assert "disconnected" not in log
        for number in range(2):
            assert await ask.end(f"c{number}") == 137


def helpers(daemon: Taskd) -> list[int]:
    """The process that forks shims."""
    listed = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [
        pid
        for pid in map(int, listed)
        if b"taskd.shim.warm" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def test_many_containers_with_few_descriptors(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    """More than the soft limit has room for, in one shim and in the daemon."""
    with (
        Nohup(folder / "taskd", settings='[shims]\nshared = true\nidle = "0s"\n') as taskd,
        leaving_nothing(taskd, namespace),
    ):
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            for number in range(SOFT):
                pid = await ask.start(
                    f"c{number}", "/bin/sleep", "1000", runtime="io.taskd.process.v1"
                )
            # Nothing was started with the limit that the shim has now.
            assert files(pid) == str(SOFT)
            (shim,) = shims(taskd, namespace)
            assert len([*Path(f"/proc/{shim}/fd").iterdir()]) > SOFT
            for number in range(SOFT):
                assert await ask.end(f"c{number}") == 137


@pytest.mark.parametrize("kind", ["missing", "nobody", "full"])
def test_a_service_manager_that_does_not_listen(folder: Path, kind: str) -> None:
    address = folder / "taskd" / "notify"
    taskd = Nohup(folder / "taskd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        if kind != "missing":
            manager.bind(str(address))
        if kind == "nobody":
            manager.close()
        if kind == "full":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    while True:
                        other.sendto(b"x", str(address))
        with taskd:
            done = subprocess.run(
                taskd.ctr_command("version", namespace="any"), capture_output=True, timeout=20
            )
            assert done.returncode == 0
            assert taskd.stop() == 0
    log = taskd.log.read_text()
    assert "Traceback" not in log
    assert ("telling the service manager at" in log) == (kind != "full")
