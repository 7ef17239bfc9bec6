"""docs/operate.md: what it tells operators to type is what works."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path

from harness.containers import make_rootfs
from harness.daemons import Taskd
from harness.real import need

PAGE = (Path(__file__).parents[2] / "docs/operate.md").read_text()
NAMESPACE = f"operate-{uuid.uuid4().hex[:8]}"


def commands(title: str) -> list[list[str]]:
    """The commands of a section, block by block."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, re.M)
    return [re.findall(r"^    (.*)$", block, re.M) for block in blocks]


def typed(lines: list[str], daemon: Taskd, backup: Path) -> None:
    """What an operator types, with this test's folders and daemon."""
    for line in lines:
        if match := re.fullmatch("systemctl (stop|start) taskd", line):
            daemon.stop() if match[1] == "stop" else daemon.start()
            continue
        here = line.replace("/var/lib/taskd", str(daemon.root)).replace("/backup", str(backup))
        subprocess.run(here, shell=True, check=True)


def test_backup_and_restore(tmp_path: Path) -> None:
    need("ctr", "runc", "containerd-shim-runc-v2")
    rootfs = make_rootfs(tmp_path / "rootfs")
    backup = tmp_path / "backup"
    backup.mkdir()
    save, restore = commands("Backup and restore")

    def ctr(*arguments: str) -> list[str]:
        return sorted(daemon.ctr(*arguments, namespace=NAMESPACE).stdout.split())

    def run(name: str) -> None:
        ctr("run", "-d", "--rootfs", str(rootfs), name, "/bin/sleep", "1000")

    with Taskd(tmp_path / "taskd") as daemon:
        run("kept")
        typed(save, daemon, backup)
        assert ctr("tasks", "ls", "-q") == ["kept"]
        run("later")
        typed(restore, daemon, backup)
        assert ctr("containers", "ls", "-q") == ["kept"]
        assert ctr("tasks", "ls", "-q") == ["kept", "later"]
        ctr("containers", "create", "--rootfs", str(rootfs), "later")
        for name in ("kept", "later"):
            ctr("tasks", "rm", "-f", name)
            ctr("containers", "rm", name)
        assert ctr("tasks", "ls", "-q") == []
