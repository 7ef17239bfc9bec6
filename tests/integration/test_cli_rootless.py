"""Containers of a user without root, from the shell: runc in a user namespace."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.containers import make_rootfs
from harness.real import AS_NOBODY, NOBODY, need
from harness.shell import COMMAND, Shell


@pytest.fixture
def places(folder: Path) -> dict[str, str]:
    """The environment of somebody with folders of their own."""
    for name in ("run", "data"):
        (folder / name).mkdir()
        os.chown(folder / name, NOBODY, NOBODY)
    os.chown(folder, NOBODY, NOBODY)
    own = {"XDG_RUNTIME_DIR": folder / "run", "XDG_DATA_HOME": folder / "data", "HOME": folder}
    kept = {name: each for name, each in os.environ.items() if not name.startswith("TASKD_")}
    return kept | {name: str(path) for name, path in own.items()}


@pytest.fixture
def root(folder: Path) -> Path:
    made = make_rootfs(folder / "rootfs")
    for each in (made, *made.rglob("*")):
        os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    return made


@pytest.fixture
def serving(folder: Path, places: dict[str, str]) -> Iterator[None]:
    need("setpriv", "runc")
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen([*AS_NOBODY, *COMMAND, "serve"], env=places, stderr=log)
    try:
        socket = folder / "run/taskd/taskd.sock"
        end = time.monotonic() + 60
        while not socket.exists():
            assert daemon.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield
    finally:
        daemon.terminate()
        daemon.wait(20)
        print((folder / "log").read_text())


@pytest.mark.usefixtures("serving")
def test_a_container_in_a_user_namespace(places: dict[str, str], root: Path) -> None:
    shell = Shell(places, AS_NOBODY)
    ours = ("--runtime", "io.taskd.oci.v1")
    script = "id -u; echo out; cat; exit 7"
    command = ("run", "--rm", "-i", *ours, root, "/bin/sh", "-c", script)
    assert shell(*command, status=7, stdin="in\n").stdout == "0\nout\nin\n"
    shell("run", "-d", "--name", "web", *ours, root, "/bin/sleep", "1000")
    assert shell("exec", "web", "/bin/sh", "-c", "id -u; echo $PPID").stdout == "0\n0\n"
    assert shell("ps", "-q").stdout == "web\n"
    shell("rm", "-f", "web")
