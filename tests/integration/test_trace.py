"""``taskd trace`` with real clients and real shims."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import Taskd
from harness.real import need
from harness.shell import Shell

OURS = "io.taskd.oci.v1"
GO = "io.containerd.runc.v2"


def listen(daemon: Taskd, *options: str) -> subprocess.Popen[str]:
    """Follow a daemon; returns once it is heard."""
    process = Shell().begin("trace", "--address", daemon.address, *options)
    assert process.stderr is not None
    assert process.stderr.readline() == "taskd: listening\n"
    return process


def heard(process: subprocess.Popen[str]) -> str:
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert err == ""
    return out


@pytest.mark.parametrize("runtime", [GO, OURS])
def test_a_life(folder: Path, namespace: str, rootfs: Path, runtime: str) -> None:
    need("ctr", "runc", "containerd-shim-runc-v2")
    record = folder / "record"
    # Its shim is started for it alone.
    with Taskd(folder / "taskd", settings="[shims]\npool = 1\n") as daemon:
        follow = listen(daemon, "--json", "--record", str(record), "--namespace", namespace, "one")
        daemon.ctr(
            *("run", "--rm", "--runtime", runtime, "--rootfs", str(rootfs), "one", "/bin/true"),
            namespace=namespace,
        )
        daemon.ctr("tasks", "kill", "other", namespace=namespace, check=False)
        # Which comes last is not said by the order of calls.
        daemon.ctr("tasks", "metrics", "one", namespace=namespace, check=False)
        found = [json.loads(line) for line in heard(follow).splitlines()]
    begun = [each for each in found if "nanoseconds" not in each]
    ended = {each["call"]: each for each in found if "nanoseconds" in each}
    assert {each["task"] for each in found} == {"one"}

    def calls(way: str) -> list[str]:
        return [each["method"].rpartition("/")[2] for each in begun if each["way"] == way]

    def answer(name: str) -> Any:
        [call] = [each["call"] for each in begun if each["method"].endswith(name)]
        return ended[call]["answer"]

    assert set(calls("CLIENT")) >= {"Create", "Start", "Wait", "Delete"}
    assert set(calls("TO_SHIM")) >= {"Create", "Start", "Wait", "Delete"}
    assert calls("FROM_SHIM") == ["Forward"] * 4
    assert calls("COMMAND")[0] == "start"
    pid = answer("services.tasks.v1.Tasks/Create")["pid"]
    assert answer(".Task/Create")["pid"] == answer(".Task/Start")["pid"] == pid
    assert answer("start").startswith("ttrpc ")
    create = next(each for each in begun if each["method"].endswith(".Task/Create"))
    assert create["request"]["bundle"].endswith(f"/{namespace}/one")

    again = Shell().out("trace", "--play", record, "--json")
    assert [json.loads(line) for line in again.splitlines()] == found
    table = Shell().out("trace", "--play", record)
    assert f"client -> Tasks/Create {namespace}/one" in table
    assert f"  -> shim Task/Create {namespace}/one" in table
    assert f"  <- shim Events/Forward {namespace}/one" in table


def test_a_shim_that_hangs_is_seen(folder: Path, namespace: str, rootfs: Path) -> None:
    need("ctr", "runc", "containerd-shim-runc-v2")
    with Taskd(folder / "taskd") as daemon:
        daemon.ctr(
            "run", "-d", "--rootfs", str(rootfs), "one", "/bin/sleep", "60", namespace=namespace
        )
        follow = listen(daemon)
        [shim] = [
            int(each.name)
            for each in Path("/proc").iterdir()
            if each.name.isdecimal() and _is_shim(each, namespace)
        ]
        os.kill(shim, signal.SIGSTOP)
        try:
            ask = subprocess.Popen(
                daemon.ctr_command("tasks", "ps", "one", namespace=namespace),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert follow.stdout is not None
            line = next(line for line in follow.stdout if "-> shim Task/Pids" in line)
            assert "goes on" in line
        finally:
            os.kill(shim, signal.SIGCONT)
        assert ask.wait(20) == 0
        heard(follow)
        daemon.ctr("tasks", "rm", "-f", "one", namespace=namespace)


def _is_shim(process: Path, namespace: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"containerd-shim-runc-v2" in words[0] and namespace.encode() in words


def test_a_daemon_that_is_not_there(folder: Path) -> None:
    done = Shell()("trace", "--address", folder / "none", status=1)
    assert (done.stdout, done.stderr) == ("", f"taskd: no daemon at {folder}/none\n")


def test_the_daemon_ends_while_it_is_listened_to(folder: Path) -> None:
    with Taskd(folder / "taskd") as daemon:
        follow = listen(daemon)
        daemon.ctr("version", namespace="default")
        daemon.stop()
        out, err = follow.communicate(timeout=20)
    assert follow.returncode == 1
    assert "Version/Version" in out
    assert err == f"taskd: no daemon at {daemon.address}\n"


def test_the_address_of_the_environment(folder: Path) -> None:
    with Taskd(folder / "taskd") as daemon:
        shell = Shell(os.environ | {"TASKD_ADDRESS": str(daemon.address)})
        for command in (["events", "--no-follow"], ["trace", "--limit", "1"]):
            follow = shell.begin(*command)
            if command[0] == "trace":
                assert follow.stderr is not None
                assert follow.stderr.readline() == "taskd: listening\n"
                daemon.ctr("version", namespace="default")
            follow.communicate(timeout=30)
            assert follow.returncode == 0


@pytest.mark.parametrize(("given", "words"), [("soon", "--slow: 'soon' is not a duration")])
def test_bad_options(given: str, words: str) -> None:
    done = Shell()("trace", "--slow", given, status=1)
    assert words in done.stderr
