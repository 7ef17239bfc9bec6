"""``taskd shim dev``: a shim that is written while its daemon runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.shell import COMMAND, SECONDS, Shell

from taskd.cli.plugin import new

RUNTIME = "io.example.thing.v1"


class Dev:
    """The command, on a new shim in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.module = new(RUNTIME, folder / "shim") / "shim_thing/__init__.py"
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "shim", "dev", str(folder / "shim")], stdout=output, stderr=output
            )
        self.wait_for("taskd: listening")
        found = re.search("^taskd: export TASKD_ADDRESS=(.*)$", self.said, re.MULTILINE)
        assert found is not None
        self.address = Path(found[1])

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str, times: int = 1) -> None:
        deadline = time.monotonic() + SECONDS
        while self.said.count(words) < times:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, f"no {words!r} in:\n{self.said}"
            time.sleep(0.05)

    def run(self, *arguments: str, status: int = 0) -> str:
        shell = Shell(os.environ | {"TASKD_ADDRESS": str(self.address)})
        done = shell("run", "--runtime", RUNTIME, *arguments, status=status)
        return done.stdout + done.stderr

    def change(self, before: str, after: str) -> None:
        changes = self.said.count("changed: shim_thing/__init__.py; new containers have it")
        text = self.module.read_text()
        assert before in text
        self.module.write_text(text.replace(before, after))
        self.wait_for("changed: shim_thing/__init__.py; new containers have it", changes + 1)


@pytest.fixture
def dev(folder: Path) -> Iterator[Dev]:
    (folder / "rootfs").mkdir()
    made = Dev(folder)
    try:
        yield made
    finally:
        print(made.said)
        if made.process.poll() is None:
            made.process.kill()  # and a process that outlives it clears up
        made.process.wait()


@pytest.mark.timeout(400)
def test_a_shim_that_changes_while_it_runs(dev: Dev, folder: Path) -> None:
    rootfs = str(folder / "rootfs")
    assert f"taskd: {RUNTIME}, from {folder}/shim\n" in dev.said
    assert dev.run("--rm", rootfs, "/bin/echo", "first") == "first\n"
    dev.wait_for("-> shim Task/Start")
    # It goes on with the code that it has.
    dev.run("-d", "--name", "old", rootfs, "/bin/sleep", f"1000.{os.getpid()}")

    dev.change("self.spawn(process.args,", 'self.spawn(["/bin/echo", "changed"],')
    assert dev.run("--rm", rootfs, "/bin/echo", "first") == "changed\n"

    dev.change("return await self.exec(init)", 'raise RuntimeError("no room")')
    assert "no room" in dev.run("--rm", rootfs, "/bin/echo", status=125)
    dev.wait_for("RuntimeError: no room\n")
    (block,) = re.findall(
        r"^\S+ +shim default/\S+: ERROR \S+/Start failed\n((?:    .*\n)+)", dev.said, re.MULTILINE
    )
    lines = block.splitlines()
    assert lines[0] == "    Traceback (most recent call last):"
    assert f'      File "{dev.module}", line 12, in start' in lines
    assert lines[-1] == "    RuntimeError: no room"
    assert dev.said.count("Traceback") == 1

    dev.change("async def exec", "async def (")
    dev.wait_for("SyntaxError")
    assert "containerd-shim-thing-v1 cannot be loaded\n    " in dev.said
    dev.change("async def (", "async def exec")

    # A class that is renamed is renamed in the project, too; what is new there needs a restart.
    dev.change("class Thing(", "class Other(")
    dev.wait_for("What it is called now is to be said in pyproject.toml, too.")
    project = folder / "shim/pyproject.toml"
    entry = f'"{RUNTIME}" = "shim_thing:'
    changed = project.read_text().replace(f'{entry}Thing"', f'{entry}Other"\n"io.more.v1" = "a:B"')
    project.write_text(changed)
    dev.wait_for("io.more.v1 is new: it is served after a restart of taskd shim dev")
    assert "no room" in dev.run("--rm", rootfs, "/bin/echo", status=125)

    # One that refuses what it is told ends as well.
    dev.change(
        'raise RuntimeError("no room")',
        "return await self.spawn(init.args, init)\n\n"
        "    async def kill(self, process: Process, signal: int, everyone: bool) -> None:\n"
        "        raise RuntimeError('not me')",
    )
    dev.run("-d", "--name", "stubborn", rootfs, "/bin/sleep", f"1001.{os.getpid()}")
    # Each is a shim and a program.
    assert len(processes(str(dev.address), f".{os.getpid()}")) == 4

    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(SECONDS) == 0
    assert processes(str(dev.address), f".{os.getpid()}") == []
    assert not dev.address.parents[1].exists()
    assert not list(dev.module.parent.glob("__pycache__"))


def processes(address: str, ending: str) -> list[str]:
    """Command lines of the shims of a daemon, and of the programs with such an end."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().decode().replace("\0", " ").strip()
            if address in line or (line.startswith("/bin/sleep") and line.endswith(ending)):
                lines.append(line)
    return lines


def test_what_is_no_shim(folder: Path) -> None:
    done = Shell()("shim", "dev", folder, status=1)
    assert done.stderr.startswith(f"taskd: {folder} has no shim: neither a pyproject.toml with ")
