"""containerd's own client against taskd: every command does what it does against containerd."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.daemons import Taskd, client
from harness.generations import GENERATIONS, Generation
from harness.pace import SLOWER
from harness.real import BOTH_SHIMS, need

from taskd.proto.containerd.services.sandbox.v1 import (
    StoreCreateRequest,
    StoreDeleteRequest,
    StoreStub,
)
from taskd.proto.containerd.types import Sandbox, SandboxRuntime

pytestmark = [pytest.mark.usefixtures("clean"), BOTH_SHIMS]

Ctr = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ctr(daemon: Taskd, namespace: str) -> Ctr:
    need("ctr")

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return daemon.ctr(*arguments, namespace=namespace, check=check)

    return run


def table(text: str) -> list[list[str]]:
    """The rows of a table that ctr prints, without its heading."""
    return [line.split() for line in text.splitlines()[1:]]


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds * SLOWER
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.02)


def test_version(ctr: Ctr) -> None:
    out = ctr("version").stdout
    assert re.search(r"Server:\n\s+Version:\s+\S+", out)
    assert re.search(r"UUID: [0-9a-f-]{36}", out)


def test_plugins(ctr: Ctr) -> None:
    rows = table(ctr("plugins", "ls").stdout)
    assert ["io.containerd.grpc.v1", "tasks", "-", "ok"] in rows
    assert ["io.containerd.runtime.v2", "task", "linux/amd64", "ok"] in rows


def test_what_a_runtime_can_do(daemon: Taskd) -> None:
    """Ours tells what runc does, to the newest client."""
    newest = GENERATIONS[-1].binaries()
    command = [f"{newest}/ctr", "-a", str(daemon.address), "plugins", "inspect-runtime"]
    own, runc = (
        json.loads(subprocess.check_output([*command, "--runtime", runtime]))
        for runtime in ("io.taskd.oci.v1", f"{newest}/containerd-shim-runc-v2")
    )
    assert own["Name"] == "io.taskd.oci.v1"
    assert own["Features"] == runc["Features"]
    assert "mountOptions" in own["Features"]


@pytest.mark.parametrize("generation", GENERATIONS[1:], ids=str)
async def test_sandboxes(daemon: Taskd, namespace: str, generation: Generation) -> None:
    """With a client that knows of them; one is made by its Python stub."""
    async with client(daemon.address, namespace) as channel:
        runtime = SandboxRuntime(name="io.containerd.runc.v2")
        sandbox = Sandbox(sandbox_id="one", runtime=runtime, labels={"a": "b"})
        await StoreStub(channel).create(StoreCreateRequest(sandbox=sandbox))
    ctr = [f"{generation.binaries()}/ctr", "-a", str(daemon.address), "-n", namespace]

    def listed(*arguments: str) -> list[str]:
        command = [*ctr, "sandboxes", "ls", *arguments]
        rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [f"{row.split()[0]} {row.split()[-1]}" for row in rows.splitlines()]

    assert listed() == ["ID RUNTIME", "one io.containerd.runc.v2"]
    assert listed("--filters", "labels.a==c") == ["ID RUNTIME"]
    async with client(daemon.address, namespace) as channel:
        await StoreStub(channel).delete(StoreDeleteRequest(sandbox_id="one"))


def test_namespaces(ctr: Ctr, namespace: str) -> None:
    ctr("namespaces", "create", namespace, "color=blue")
    assert [namespace, "color=blue"] in table(ctr("namespaces", "ls").stdout)
    ctr("namespaces", "label", namespace, "color=red")
    assert [namespace, "color=red"] in table(ctr("namespaces", "ls").stdout)
    again = ctr("namespaces", "create", namespace, check=False)
    assert again.returncode == 1
    assert "already exists" in again.stderr
    ctr("namespaces", "rm", namespace)
    assert namespace not in ctr("namespaces", "ls", "-q").stdout.split()


def test_run_prints_output_and_passes_exit_status_on(ctr: Ctr, rootfs: Path) -> None:
    done = ctr(
        *("run", "--rm", "--rootfs", str(rootfs), "one"),
        *("/bin/sh", "-c", "echo out; echo err >&2; exit 42"),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")
    assert ctr("containers", "ls", "-q").stdout == ""


def test_run_reads_standard_input(daemon: Taskd, ctr: Ctr, namespace: str, rootfs: Path) -> None:
    # head, not cat: ctr 1.6 does not pass the end of its standard input on.
    command = daemon.ctr_command(
        *("run", "--rm", "--rootfs", str(rootfs), "one", "/bin/head", "-n", "1000"),
        namespace=namespace,
    )
    text = "hello\n" * 1000
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, text)


def test_run_with_a_terminal(daemon: Taskd, ctr: Ctr, namespace: str, rootfs: Path) -> None:
    command = daemon.ctr_command(
        *("run", "--rm", "-t", "--rootfs", str(rootfs), "one", "/bin/sh"), namespace=namespace
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    written = b""

    def read_until(text: bytes) -> None:
        nonlocal written
        deadline = time.monotonic() + 10 * SLOWER
        while text not in written:
            assert time.monotonic() < deadline, written
            if select.select([terminal], [], [], 0.1)[0]:
                written += os.read(terminal, 4096)

    try:
        read_until(b"# ")
        os.write(terminal, b"tty; stty size; echo $((6 * 7))\n")
        read_until(b"42\r")
        os.write(terminal, b"exit 3\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    finally:
        os.close(terminal)
    assert b"/dev/pts/0" in written


def test_life_of_a_detached_container(ctr: Ctr, rootfs: Path) -> None:
    ctr("run", "-d", "--rootfs", str(rootfs), "one", "/bin/sleep", "1000")
    ((name, pid, status),) = table(ctr("tasks", "ls").stdout)
    assert (name, status) == ("one", "RUNNING")
    assert ["one", "-", "io.containerd.runc.v2"] in table(ctr("containers", "ls").stdout)
    assert [pid, "-"] in table(ctr("tasks", "ps", "one").stdout)

    executed = ctr(
        "tasks", "exec", "--exec-id", "two", "one", "/bin/sh", "-c", "echo in; exit 7", check=False
    )
    assert (executed.returncode, executed.stdout) == (7, "in\n")

    ctr("tasks", "pause", "one")
    assert table(ctr("tasks", "ls").stdout) == [["one", pid, "PAUSED"]]
    ctr("tasks", "resume", "one")
    assert table(ctr("tasks", "ls").stdout) == [["one", pid, "RUNNING"]]

    metrics = ctr("tasks", "metrics", "one").stdout
    assert re.search(r"^memory\.usage(_in_bytes)?\s+\d+", metrics, re.MULTILINE)
    assert re.search(r"^pids\.current\s+1\s*$", metrics, re.MULTILINE)

    refused = ctr("tasks", "delete", "one", check=False)
    assert refused.returncode == 1
    ctr("tasks", "kill", "--signal", "SIGKILL", "one")
    until(lambda: "STOPPED" in ctr("tasks", "ls").stdout, "stopped")
    assert "exit code 137" in ctr("tasks", "delete", "one").stderr
    assert table(ctr("tasks", "ls").stdout) == []
    ctr("containers", "rm", "one")


def test_containers(ctr: Ctr, rootfs: Path) -> None:
    ctr("containers", "create", "--rootfs", "--label", "a=b", str(rootfs), "one", "/bin/true")
    info = ctr("containers", "info", "one").stdout
    assert '"ID": "one"' in info
    assert '"a": "b"' in info
    assert '"ociVersion"' in info
    ctr("containers", "label", "one", "a=c", "d=e")
    assert set(ctr("containers", "label", "one", "a=c").stdout.strip().split(",")) >= {"a=c", "d=e"}
    again = ctr("containers", "create", "--rootfs", str(rootfs), "one", "/bin/true", check=False)
    assert "already exists" in again.stderr
    ctr("tasks", "start", "one")  # attached: it removes the task that it has seen exit
    ctr("tasks", "start", "-d", "one")
    until(lambda: "STOPPED" in ctr("tasks", "ls").stdout, "stopped")
    assert ctr("tasks", "delete", "one").returncode == 0
    ctr("containers", "rm", "one")
    assert "not found" in ctr("containers", "info", "one", check=False).stderr


def test_attach(daemon: Taskd, ctr: Ctr, namespace: str, rootfs: Path) -> None:
    ctr(
        *("run", "-d", "--rootfs", str(rootfs), "one"),
        *("/bin/sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done"),
    )
    attached = subprocess.Popen(
        daemon.ctr_command("tasks", "attach", "one", namespace=namespace),
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    ctr("tasks", "kill", "--signal", "SIGTERM", "one")
    out, _ = attached.communicate(timeout=20)
    assert (attached.returncode, out) == (5, "bye\n")
    ctr("containers", "rm", "one")


def test_events(daemon: Taskd, ctr: Ctr, namespace: str, rootfs: Path) -> None:
    with subprocess.Popen(
        daemon.ctr_command("events", namespace=namespace), stdout=subprocess.PIPE, text=True
    ) as follower:
        try:
            time.sleep(0.5)
            ctr("run", "--rm", "--rootfs", str(rootfs), "one", "/bin/true")
            seen: list[str] = []
            assert follower.stdout is not None
            while "/containers/delete" not in seen:
                line = follower.stdout.readline()
                assert line
                assert f" {namespace} " in line
                seen += [word for word in line.split() if word.startswith("/")]
        finally:
            follower.terminate()
    assert seen == [
        *("/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"),
        "/containers/delete",
    ]


def test_leases(ctr: Ctr) -> None:
    ctr("leases", "create", "--id", "mine", "--expires", "1h", "a=b")
    ((name, _, labels),) = table(ctr("leases", "ls").stdout)
    assert name == "mine"
    assert "a=b" in labels
    ctr("leases", "rm", "mine")
    assert ctr("leases", "ls", "-q").stdout == ""


def test_a_missing_binary_is_told_in_the_runtimes_words(ctr: Ctr, rootfs: Path) -> None:
    done = ctr("run", "--rm", "--rootfs", str(rootfs), "one", "/no/such", check=False)
    assert done.returncode == 1
    assert 'exec: "/no/such": stat /no/such: no such file or directory' in done.stderr


def test_an_unknown_runtime_is_named(ctr: Ctr, rootfs: Path) -> None:
    done = ctr(
        *("run", "--rm", "--runtime", "io.example.none.v7", "--rootfs", str(rootfs), "one"),
        "/bin/true",
        check=False,
    )
    assert done.returncode == 1
    assert (
        'runtime "io.example.none.v7" binary not installed "containerd-shim-none-v7"' in done.stderr
    )
