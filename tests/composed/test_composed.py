"""The daemon and the bus of docker-compose.yml, used from another container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.containers import make_rootfs

ADDRESS = os.environ["TASKD_ADDRESS"]
CONFIG = Path(__file__).with_name("taskd.toml")
SHARED = Path("/shared")

STEPS = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.fixture(scope="module")
def rootfs(worker_id: str) -> Path:
    """Where the daemon sees it, too."""
    folder = SHARED / f"rootfs-{worker_id}"
    return folder if folder.exists() else make_rootfs(folder)


def ctr(namespace: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ctr", "--address", ADDRESS, "--namespace", namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def events(*arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, *("-m", "taskd", "events", "--no-follow", "--json"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_container_says_hello(namespace: str, rootfs: Path) -> None:
    done = ctr(namespace, "run", "--rm", "--rootfs", str(rootfs), "one", "/bin/echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_what_happens_is_on_the_bus(namespace: str, rootfs: Path) -> None:
    command = ["run", "--rm", "--rootfs", str(rootfs), "one", "/bin/sh", "-c", "exit 7"]
    assert ctr(namespace, *command).returncode == 7
    filters = [f'namespace=="{namespace}",topic~="^/tasks/"']
    journal = events("--address", ADDRESS, *filters)
    assert [event["topic"] for event in journal] == STEPS
    deadline = time.monotonic() + 20
    while True:
        fleet = events("--config", str(CONFIG), *filters)
        if len(fleet) >= len(STEPS) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert fleet == [{"node": "composed", **event} for event in journal]


def test_an_exec_and_a_kill(namespace: str, rootfs: Path) -> None:
    started = ctr(
        namespace, "run", "--detach", "--rootfs", str(rootfs), "one", "/bin/sleep", "1000"
    )
    assert started.returncode == 0, started.stderr
    done = ctr(namespace, "tasks", "exec", "--exec-id", "two", "one", "/bin/echo", "inside")
    assert (done.returncode, done.stdout) == (0, "inside\n")
    listed = ctr(namespace, "tasks", "ls", "--quiet")
    assert listed.stdout.split() == ["one"]
    assert ctr(namespace, "tasks", "delete", "--force", "one").returncode in (0, 137)
    assert ctr(namespace, "containers", "delete", "one").returncode == 0
    assert ctr(namespace, "tasks", "ls", "--quiet").stdout == ""
