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


def test_its_own_tests(folder: Path, plugin: Path) -> None:
    done = subprocess.run(
        [str(plugin / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder / "plugin",
        env=venv.environment(plugin),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


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
