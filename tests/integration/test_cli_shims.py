"""``taskd shims``: the processes of shims, from the shell."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import Containerd, Taskd
from harness.real import need
from harness.shell import Shell, environment

from taskd import pidfd

OURS, GO = "io.taskd.oci.v1", "io.containerd.runc.v2"


@pytest.fixture(params=["", "[shims]\npool = 5\n"], ids=["alone", "pool"])
def pooled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def run(folder: Path, namespace: str, pooled: bool) -> Iterator[Shell]:
    need("containerd-shim-runc-v2", "runc")
    settings = f"[shims]\nadopt = false\npool = {5 if pooled else 1}\n"
    with Taskd(folder / "taskd", settings=settings) as daemon:
        run = Shell(environment(daemon, namespace))
        yield run
        run("rm", "-f", *run("ps", "-aq").stdout.split(), status=0)
    print(daemon.log.read_text())


def test_processes_and_who_lives_in_them(
    run: Shell, namespace: str, rootfs: Path, pooled: bool
) -> None:
    for name, runtime in (("go", GO), ("one", OURS), ("two", OURS)):
        begun = time.time()
        run("run", "-d", "--name", name, "--runtime", runtime, rootfs, "/bin/sleep", "1000")
    found = [json.loads(line) for line in run("shims", "--json").stdout.splitlines()]
    lived_in = [each for each in found if each["tenants"]]
    tenants = sorted(sorted(each["tenants"]) for each in lived_in)
    one, two, go = (f"{namespace}/{name}" for name in ("one", "two", "go"))
    assert tenants == ([[go], [one, two]] if pooled else [[go], [one], [two]])
    for each in lived_in:
        assert each["state"] == "serving"
        assert 100_000 < each["memory"] < 100_000_000
        assert 0 < each["age"] < 120
        assert each["pooled"] is (pooled and go not in each["tenants"])
        name = "containerd-shim-runc-v2" if go in each["tenants"] else "containerd-shim-oci-v1"
        assert Path(each["binary"]).name == name
        assert Path(f"/proc/{each['pid']}").exists()
        # As a fork that waits for a container it is older.
        if each["tenants"] == [two]:
            assert each["age"] < time.time() - begun
    table = run("shims").stdout
    assert all(str(each["pid"]) in table for each in found)

    # Only what is a shim of this daemon's is killed.
    refused = run("kill-shim", os.getpid(), status=1).stderr
    assert refused == f"taskd: shim with pid {os.getpid()}: not found\n"
    [victim] = [each["pid"] for each in lived_in if go in each["tenants"]]
    assert run("kill-shim", victim).stdout == f"{victim}\n"
    end = time.monotonic() + 30
    while "go" in run("ps", "-q").stdout.split():
        assert time.monotonic() < end
    assert sorted(run("ps", "-q").stdout.split()) == ["one", "two"]


@pytest.mark.parametrize("runtime", [GO, OURS])
def test_one_that_does_not_answer_a_later_daemon(
    folder: Path, namespace: str, rootfs: Path, runtime: str
) -> None:
    """Of the Go shim's socket it was `start`, long gone, that listened first."""
    need("containerd-shim-runc-v2", "runc")
    settings = '[shims]\nadopt = false\n[timeouts]\n"io.containerd.timeout.shim.load" = "0.5s"\n'
    with Taskd(folder / "taskd", settings=settings) as daemon:
        run = Shell(environment(daemon, namespace))
        run("run", "-d", "--name", "one", "--runtime", runtime, rootfs, "/bin/sleep", "1000")

        def pid() -> int:
            (found,) = [each for each in objects(run("shims", "--json").stdout) if each["tenants"]]
            return int(found["pid"])

        def until(holds: Callable[[], bool]) -> None:
            end = time.monotonic() + 60
            while not holds():
                assert time.monotonic() < end

        until(lambda: pid() > 0)
        shim = pid()
        daemon.kill()
        os.kill(shim, signal.SIGSTOP)
        daemon.start()
        try:
            until(lambda: pid() > 0)
            assert pid() == shim
            assert run("kill-shim", shim).stdout == f"{shim}\n"
            until(lambda: not run("ps", "-q").stdout)
        finally:
            with suppress(ProcessLookupError):
                os.kill(shim, signal.SIGCONT)
            run("rm", "-f", "one")


@pytest.fixture(params=[1, 5], ids=["alone", "pool"])
def surviving(folder: Path, namespace: str, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Containers survive their shim."""
    need("containerd-shim-runc-v2", "runc")
    settings = f"[shims]\nadopt = true\npool = {request.param}\n"
    with Taskd(folder / "taskd", settings=settings) as daemon:
        run = Shell(environment(daemon, namespace))
        yield run
        run("rm", "-f", *run("ps", "-aq").stdout.split(), status=0)
    print(daemon.log.read_text())


def objects(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


@pytest.mark.skipif(
    not pidfd.tells_exits(), reason="needs Linux 6.15: containers end with their shim"
)
@pytest.mark.timeout(300)
def test_fresh_processes(surviving: Shell, namespace: str, rootfs: Path) -> None:
    run = surviving
    for name, runtime in (("go", GO), ("one", OURS), ("two", OURS)):
        run("run", "-d", "--name", name, "--runtime", runtime, rootfs, "/bin/sleep", "1000")

    def processes() -> dict[str, int]:
        return {
            tenant.partition("/")[2]: each["pid"]
            for each in objects(run("shims", "--json").stdout)
            for tenant in each["tenants"]
        }

    before = processes()
    # All that can be are renewed, and nobody is to blame for one that cannot.
    told = run("shims", "renew").stdout
    after = processes()
    for name in ("one", "two"):
        assert after[name] != before[name]
        assert f"{before[name]} " in told
        assert f": {after[name]} goes on\n" in told
    assert after["go"] == before["go"]
    assert f"{before['go']} {namespace}/go: left as it is: it is no shim on taskd.shim" in told

    # By what lives in it, or by its pid.
    (told_of,) = objects(run("shims", "renew", "one", "--json").stdout)
    assert told_of["pid"] == after["one"]
    assert told_of["renewed"]
    assert told_of["new_pid"] == processes()["one"] != after["one"]
    assert f"{namespace}/one" in told_of["tenants"]
    assert run("shims", "renew", told_of["new_pid"]).stdout.endswith(" goes on\n")
    assert run("exec", "two", "/bin/echo", "there").stdout == "there\n"

    # Whoever names one wants just that.
    (left,) = objects(run("shims", "--json", "renew", f"{namespace}/go", status=1).stdout)
    assert not left["renewed"]
    assert "no shim on taskd.shim" in left["reason"]
    assert "shim of task three: not found" in run("shims", "renew", "three", status=1).stderr


def test_no_fresh_processes(run: Shell, rootfs: Path) -> None:
    run("run", "-d", "--name", "one", "--runtime", OURS, rootfs, "/bin/sleep", "1000")
    told = run("shims", "renew", "one", status=1).stdout
    assert told.endswith("/one: left as it is: [shims] adopt is off\n")


def test_a_containerd_does_not_show_them(folder: Path, namespace: str) -> None:
    need("containerd")
    with Containerd(folder / "containerd") as daemon:
        said = Shell(environment(daemon, namespace))("shims", status=1).stderr
    assert "does not show its shims: it is no taskd" in said
