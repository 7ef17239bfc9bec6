"""``taskd shim new``: what it writes can be installed, tested and run at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import venv
from harness.daemons import Containerd
from harness.real import need

from taskd.cli.main import main

ROOT = Path(__file__).parents[2]
NAME = "io.example.two-words.v3"


@pytest.fixture
def plugin(folder: Path) -> Path:
    """One that is written, and installed in an environment beside it; its folder of programs."""
    assert main(["shim", "new", NAME, "--folder", str(folder / "plugin")]) == 0
    programs = venv.make(folder / "venv")
    venv.install(programs, folder / "plugin")
    return programs


def run_tests(folder: Path, plugin: Path, *options: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(plugin / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder / "plugin",
        env=venv.environment(plugin) | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_its_own_tests(folder: Path, plugin: Path) -> None:
    status, said = run_tests(folder, plugin)
    assert status == 0, said
    assert "5 passed" in said
    # A root filesystem that is not there is missed.
    status, said = run_tests(folder, plugin, "-k", "output", ROOTFS="/no/such/rootfs")
    assert status == 1, said
    assert "/no/such/rootfs" in said


def test_a_shim_that_hangs_does_not_hang_its_tests(folder: Path, plugin: Path) -> None:
    module = folder / "plugin/shim_two_words/__init__.py"
    waiting = "import asyncio\n\n        await asyncio.sleep(1000)\n        "
    before = "return await self.exec(init)"
    module.write_text(module.read_text().replace(before, waiting + before))
    status, said = run_tests(folder, plugin, "-k", "output", SECONDS="2")
    assert status == 1, said
    assert "TimeoutError" in said


def test_under_containerd(folder: Path, plugin: Path, namespace: str) -> None:
    need("containerd", "ctr")
    (folder / "rootfs").mkdir()
    path = venv.environment(plugin)["PATH"]
    with Containerd(folder / "containerd", path=path) as containerd:
        done = containerd.ctr(
            *("run", "--rm", "--runtime", NAME, "--rootfs", str(folder / "rootfs"), "one"),
            *("/bin/sh", "-c", "echo hello; exit 3"),
            namespace=namespace,
            check=False,
        )
    assert (done.returncode, done.stdout) == (3, "hello\n"), done.stderr


def test_its_types(folder: Path, plugin: Path) -> None:
    modules = [str(path) for path in (folder / "plugin").rglob("*.py")]
    assert len(modules) == 2
    subprocess.run(
        [str(plugin / "python"), "-m", "mypy", "--strict", *modules],
        cwd=ROOT,  # where `make types` has looked at taskd before
        env=venv.environment(plugin),
        check=True,
    )
