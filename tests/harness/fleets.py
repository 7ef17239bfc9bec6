"""Machines on which somebody does what docs/fleet.md says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.documents import Command, File, blocks, pattern
from harness.machines import Fleet, Machine
from harness.pace import SLOWER
from harness.real import need

__all__ = ["PAGE", "SECONDS", "Reader", "fleet_of", "until_all_run"]

_ROOT = Path(__file__).parents[2]

PAGE = list(blocks(_ROOT / "docs/fleet.md"))
SECONDS = 150
"""For whatever has to happen."""


class Reader:
    """Writes and types what stands in the page."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.token = ""
        self.pids: dict[str, int] = {}
        """Of what was started, as its machine numbers them, by machine and program."""

    def follow(self, *steps: File | Command) -> None:
        for step in steps:
            if isinstance(step, File):
                for machine in self.fleet.values():
                    (machine.folder / step.path.lstrip("/")).write_text(step.text)
                continue
            everyone = step.machine == "each"
            for machine in self.fleet.values() if everyone else [self.fleet[step.machine]]:
                self.type(machine, step)

    def type(self, machine: Machine, command: Command | str) -> None:
        """Type a command, or that of the page which begins so, until it says what it ought to."""
        if isinstance(command, str):
            commands = (step for step in PAGE if isinstance(step, Command))
            command = next(each for each in commands if each.line.startswith(command))
        line = command.line.replace("SWMTKN-…", self.token)
        if line.endswith(" &"):
            program = line.split()[0]
            started = machine.check(f"{line[:-2]} >> /srv/{program}.log 2>&1 & echo $!")
            self.pids[f"{machine.name} {program}"] = int(started)
            return
        deadline = time.monotonic() + SECONDS * SLOWER
        while True:
            done = machine.run(line)
            expected = pattern(command.shown) if command.shown else "(?s).*"
            if done.returncode == 0 and re.fullmatch(expected, done.stdout):
                break
            assert time.monotonic() < deadline, f"{machine.name}$ {line}\n{done.stdout}"
            time.sleep(0.3)
        if token := re.search(r"SWMTKN-\S+", done.stdout):
            self.token = token[0]


@contextmanager
def fleet_of(folder: Path, rootfs: Path, *names: str) -> Iterator[Fleet]:
    """Machines that have what the page takes for granted."""
    need("dockerd", "/usr/bin/docker", "nats-server", "containerd-shim-runc-v2", "runc", "ip")
    prometheus = _ROOT / ".cache/prometheus"
    unpack = _ROOT / "tests/harness/unpack.sh"
    subprocess.run(["sh", unpack, "bookworm", "prometheus", prometheus], check=True)
    with pytest.MonkeyPatch.context() as patch:
        # Another `docker` may be too new for Debian's dockerd.
        own = [sysconfig.get_path("scripts"), "/usr/bin", str(prometheus / "usr/bin")]
        patch.setenv("PATH", ":".join([*own, os.environ["PATH"]]))
        patch.delenv("DOCKER_HOST", raising=False)
        with Fleet(folder / "fleet", *names) as machines:
            try:
                for machine in machines.values():
                    _furnish(machine, rootfs)
                yield machines
            finally:
                for log in folder.glob("fleet/*/srv/*.log"):
                    print(f"--- {log.relative_to(folder)}\n{log.read_text()[-20_000:]}")


def _furnish(machine: Machine, rootfs: Path) -> None:
    (machine.folder / "etc/docker").mkdir(exist_ok=True)
    settings = {"cgroup-parent": f"/{machine.cgroup}"}
    (machine.folder / "etc/docker/daemon.json").write_text(json.dumps(settings))
    shutil.copy(_ROOT / "monitoring/alerts.yaml", machine.folder / "etc/taskd-alerts.yaml")
    shutil.copytree(rootfs, machine.folder / "srv/busybox", symlinks=True)


def until_all_run(fleet: Fleet, **where: int) -> None:
    """The swarm has just so many tasks in its mind, and they all run."""
    tasks = "docker service ps web --filter desired-state=running"
    tasks += " --format '{{.Node}} {{.CurrentState}}' | cut -d ' ' -f 1-2 | sort"
    lines = [f"{name} Running\n" for name, count in sorted(where.items()) for _ in range(count)]
    fleet["one"].until(tasks, "".join(lines), seconds=SECONDS)
