"""Containers that are labelled to be restarted, under containerd and under taskd alike."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from harness.daemons import Containerd, Daemon, Taskd
from harness.generations import GENERATIONS
from harness.leaks import leaving_nothing
from harness.real import need

RESTART = "containerd.io/restart"


class Restarting(Containerd):
    """Looks every second, and not every ten."""

    def command(self) -> list[str]:
        command = super().command()
        config = self.folder / "config.toml"
        plugin = "internal.v1" if "trixie" in self.path else "monitor.container.v1"
        config.write_text(
            f'{config.read_text()}[plugins."io.containerd.{plugin}.restart"]\ninterval = "1s"\n'
        )
        return command


SIDES = [("taskd", GENERATIONS[1]), *(("containerd", each) for each in GENERATIONS[1:])]


@pytest.fixture(scope="module", params=SIDES, ids=lambda side: f"{side[0]} {side[1]}")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    need("containerd", "ctr", "runc", "busybox")
    kind, generation = request.param
    path = f"{generation.binaries()}:{os.environ['PATH']}"
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    if kind == "taskd":
        daemon: Daemon = Taskd(folder, path=path, settings='[restart]\ninterval = "1s"\n')
    else:
        daemon = Restarting(folder, path=path)
    with daemon:
        yield daemon
    print(daemon.log.read_text())
    shutil.rmtree(folder, ignore_errors=True)


class Box:
    """A container of the daemon's that has labels."""

    def __init__(self, daemon: Daemon, namespace: str, rootfs: Path, name: str) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.rootfs = rootfs
        self.name = name

    def ctr(self, *arguments: str, check: bool = True) -> str:
        return self.daemon.ctr(*arguments, namespace=self.namespace, check=check).stdout

    def run(self, script: str, **labels: str) -> None:
        given = [
            f"--label={RESTART}.{name.replace('_', '-')}={value}" for name, value in labels.items()
        ]
        self.ctr(
            *("run", "-d", "--null-io", *given, "--rootfs", str(self.rootfs)),
            *(self.name, "/bin/sh", "-c", script),
        )

    @property
    def labels(self) -> dict[str, str]:
        found = json.loads(self.ctr("containers", "info", self.name))["Labels"]
        prefix = f"{RESTART}."
        return {
            name.removeprefix(prefix): value
            for name, value in found.items()
            if name.startswith(prefix)
        }

    @property
    def count(self) -> int:
        return int(self.labels.get("count", "0"))

    @property
    def task(self) -> tuple[str, str]:
        """Its pid and status."""
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        found = (each[1:] for each in rows if each[0] == self.name)
        pid, status = next(found, ("", ""))
        return pid, status

    def becomes(self, condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.name}: {what}: {self.task} {self.labels}"
            time.sleep(0.1)

    def kill(self) -> None:
        self.ctr("tasks", "kill", "-s", "9", self.name)

    def set_label(self, name: str, value: str) -> None:
        self.ctr("containers", "label", self.name, f"{RESTART}.{name}={value}")

    def end(self) -> None:
        self.ctr("tasks", "rm", "-f", self.name, check=False)
        self.ctr("containers", "rm", self.name, check=False)


def test_restarts(daemon: Daemon, namespace: str, rootfs: Path, tmp_path: Path) -> None:
    """All at once: what takes time is waiting for the monitor to look."""
    log = tmp_path / "log"
    boxes: list[Box] = []

    def run(name: str, script: str, **labels: str) -> Box:
        box = Box(daemon, namespace, rootfs, name)
        boxes.append(box)
        box.run(script, **labels)
        return box

    with nullcontext() if isinstance(daemon, Containerd) else leaving_nothing(daemon, namespace):
        try:
            always = run("always", "sleep 1000", status="running")
            first = always.task
            assert first[1] == "RUNNING"
            paused = run("paused", "sleep 1000", status="running")
            paused.ctr("tasks", "pause", "paused")
            failing = run("failing", "exit 3", status="running", policy="on-failure:2")
            never = [
                run("well", "exit 0", status="running", policy="on-failure"),
                *(
                    run(policy.replace(":", "-"), "exit 3", status="running", policy=policy)
                    for policy in ("no", "nosuch", "always:3", "on-failure:x")
                ),
            ]
            unless = run(
                *("unless", "exit 0"),
                status="running",
                policy="unless-stopped",
                explicitly_stopped="true",
            )
            stopped = run("stopped", "trap '' TERM; sleep 1000")
            stopped.set_label("status", "stopped")
            logging = run("logging", "echo out; echo err >&2; exit 1", loguri=f"file://{log}")
            logging.set_label("status", "running")

            always.kill()
            always.becomes(lambda: always.count == 1, "restarted")
            always.becomes(lambda: always.task[1] == "RUNNING", "running")
            assert always.task != first
            # Also if somebody has removed what had ended.
            always.ctr("tasks", "rm", "-f", "always")
            always.becomes(lambda: always.count == 2, "restarted again")
            stopped.becomes(lambda: stopped.task == ("", ""), "ended and deleted")
            stopped.set_label("status", "running")
            stopped.becomes(lambda: stopped.task[1] == "RUNNING", "started")
            assert stopped.count == 1
            failing.becomes(lambda: failing.count == 2, "tried twice")
            failing.becomes(lambda: failing.task[1] == "STOPPED", "given up")
            assert unless.count == 0
            unless.set_label("explicitly-stopped", "false")
            unless.becomes(lambda: unless.count >= 2, "restarted")
            logging.becomes(lambda: log.exists() and log.read_text().count("out\n") > 1, "written")
            assert "err\n" in log.read_text()
            assert failing.count == 2
            assert [box.name for box in never if box.count] == []
            # 1.x takes a pause for an end.
            if not (isinstance(daemon, Containerd) and "trixie" in daemon.path):
                assert paused.count == 0
                assert paused.task[1] == "PAUSED"
            paused.ctr("tasks", "resume", "paused", check=False)
        finally:
            for box in boxes:
                box.set_label("status", "")
            time.sleep(1.5)  # for restarts that have begun
            for box in boxes:
                box.end()
