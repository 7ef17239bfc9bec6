"""taskd's own shims under real containerds, driven by these containerds' own clients."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.daemons import Containerd
from harness.generations import GENERATIONS, Generation
from harness.leaks import leaving_nothing, traces
from harness.pace import SLOWER
from harness.real import need

from taskd import procfs

RUNC, PROCESS = "io.taskd.oci.v1", "io.taskd.process.v1"


@pytest.fixture(params=GENERATIONS, ids=str)
def containerd(request: pytest.FixtureRequest, folder: Path) -> Iterator[Containerd]:
    """A containerd that finds the executables of taskd's shims."""
    need("containerd", "ctr", "runc", "busybox")
    generation: Generation = request.param
    binaries = generation.binaries()
    path = [sysconfig.get_path("scripts"), *([str(binaries)] if binaries else [])]
    with Containerd(folder / "c", path=":".join((*path, os.environ["PATH"]))) as running:
        yield running
    # Shown if the test fails.
    print(running.log.read_text())


class Ctr:
    """The client, in the test's namespace."""

    def __init__(self, daemon: Containerd, namespace: str) -> None:
        self.daemon = daemon
        self.namespace = namespace

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.daemon.ctr(*arguments, namespace=self.namespace, check=check)

    def tasks(self) -> list[list[str]]:
        return [line.split() for line in self("tasks", "ls").stdout.splitlines()[1:]]

    def shims(self) -> list[str]:
        found = traces(self.daemon.state, self.daemon.root, self.namespace).processes
        return sorted(each for each in found if " -id " in each)


@pytest.fixture
def ctr(containerd: Containerd, namespace: str) -> Iterator[Ctr]:
    with leaving_nothing(containerd, namespace):
        yield Ctr(containerd, namespace)


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds * SLOWER
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("runtime", [RUNC, PROCESS])
def test_run(ctr: Ctr, rootfs: Path, runtime: str) -> None:
    done = ctr(
        *("run", "--rm", "--runtime", runtime, "--rootfs", str(rootfs), "one"),
        *("/bin/sh", "-c", "echo out; echo err >&2; exit 42"),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


@pytest.mark.parametrize("runtime", [RUNC, PROCESS])
def test_a_life(ctr: Ctr, rootfs: Path, runtime: str) -> None:
    ctr("run", "-d", "--runtime", runtime, "--rootfs", str(rootfs), "one", "/bin/sleep", "1000")
    ((name, pid, status),) = ctr.tasks()
    assert (name, status) == ("one", "RUNNING")
    assert pid in ctr("tasks", "ps", "one").stdout
    executed = ctr(
        # Of that name there is a file in the bundle, with the container's pid.
        *("tasks", "exec", "--exec-id", "init", "one", "/bin/sh", "-c", "echo in; exit 7"),
        check=False,
    )
    assert (executed.returncode, executed.stdout) == (7, "in\n")
    bundle = ctr.daemon.state / "io.containerd.runtime.v2.task" / ctr.namespace / "one"
    assert (bundle / "init.pid").read_text() == pid
    ctr("tasks", "pause", "one")
    assert ctr.tasks() == [["one", pid, "PAUSED"]]
    ctr("tasks", "resume", "one")
    assert ctr.tasks() == [["one", pid, "RUNNING"]]
    assert re.search(r"^pids\.current\s+1\s*$", ctr("tasks", "metrics", "one").stdout, re.M)
    assert ctr("tasks", "delete", "one", check=False).returncode == 1
    ctr("tasks", "kill", "--signal", "SIGKILL", "one")
    until(lambda: ctr.tasks() == [["one", pid, "STOPPED"]], "stopped")
    assert "exit code 137" in ctr("tasks", "delete", "one", check=False).stderr
    assert ctr.tasks() == []
    ctr("containers", "rm", "one")


@pytest.mark.parametrize("runtime", [RUNC, PROCESS])
def test_containerd_is_restarted(ctr: Ctr, rootfs: Path, runtime: str) -> None:
    script = "trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done"
    output = ctr.daemon.folder / "output"
    ctr(
        *("run", "-d", "--runtime", runtime, "--log-uri", f"file://{output}"),
        *("--rootfs", str(rootfs), "one", "/bin/sh", "-c", script),
    )
    running = ctr.tasks()
    ctr.daemon.stop()
    ctr.daemon.start()
    assert ctr.tasks() == running
    ctr("tasks", "kill", "--signal", "SIGTERM", "one")
    until(lambda: "STOPPED" in ctr("tasks", "ls").stdout, "stopped")
    assert output.read_text() == "bye\n"
    assert "exit code 5" in ctr("tasks", "delete", "one", check=False).stderr
    ctr("containers", "rm", "one")


@pytest.mark.parametrize("runtime", [RUNC, PROCESS])
def test_the_shim_is_killed(ctr: Ctr, rootfs: Path, runtime: str) -> None:
    ctr("run", "-d", "--runtime", runtime, "--rootfs", str(rootfs), "one", "/bin/sleep", "1000")
    ((_, pid, _),) = ctr.tasks()
    (shim,) = ctr.shims()
    os.kill(int(shim.split()[0]), signal.SIGKILL)
    # containerd runs the shim's `delete`.
    until(lambda: ctr.tasks() == [], "the task is gone")
    until(lambda: not Path("/proc", pid).exists(), "its process is gone")
    ctr("containers", "rm", "one")


@pytest.mark.parametrize("containerd", GENERATIONS[:1], ids=str, indirect=True)
def test_the_shim_of_many_containers_is_killed(ctr: Ctr, rootfs: Path) -> None:
    """containerd runs as many `delete` at once, and gives each five seconds."""
    options = ["--runtime", RUNC, "--annotation", "io.containerd.runc.v2.group=many"]

    def run(number: int) -> None:
        ctr("run", "-d", *options, "--rootfs", str(rootfs), f"c{number}", "/bin/sleep", "1000")

    run(0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(1, 16)))
    pids = [pid for _, pid, _ in ctr.tasks()]
    (shim,) = {procfs.stat(int(pid)).parent for pid in pids}
    told = ctr.daemon.folder / "events"
    with told.open("w") as file:
        command = ctr.daemon.ctr_command("events", namespace=ctr.namespace)
        events = subprocess.Popen(command, stdout=file)

    def exits() -> list[dict[str, int]]:
        lines = (line for line in told.read_text().splitlines() if "/tasks/exit" in line)
        return [json.loads(line[line.index("{") :]) for line in lines]

    def hears() -> bool:
        ctr("containers", "label", "c0", "a=b")
        return "/containers/update" in told.read_text()

    try:
        until(hears, "it hears of events")
        os.kill(shim, signal.SIGKILL)
        until(lambda: len(exits()) == len(pids), "all exits are told")
    finally:
        events.kill()
        events.wait()
    assert {each["exit_status"] for each in exits()} == {137}
    assert {str(each["pid"]) for each in exits()} == set(pids)
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids), "all processes are gone")
    for number in range(16):
        ctr("containers", "rm", f"c{number}")


def test_a_terminal(ctr: Ctr, rootfs: Path) -> None:
    command = ctr.daemon.ctr_command(
        *("run", "--rm", "-t", "--runtime", RUNC, "--rootfs", str(rootfs), "one"),
        *("/bin/sh", "-c", "tty; exit 3"),
        namespace=ctr.namespace,
    )
    done = subprocess.run(
        ["script", "-qec", " ".join(f"'{each}'" for each in command), "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert "/dev/pts/0" in done.stdout
