"""Where shims listen, and who may be there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.real import NOBODY

from taskd import shim_sockets
from taskd.errors import Unknown
from taskd.runtime.binary import Bootstrap
from taskd.runtime.connection import connect
from taskd.sockets import refuse_stranger

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def test_the_folder_of_each_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "tasks/ns/one"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert shim_sockets.folder(bundle) == Path("/run/containerd/s")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert shim_sockets.folder(bundle) == Path("/run/user/7/taskd-shims")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert shim_sockets.folder(bundle) == tmp_path / "tasks/.s"


@pytest.mark.parametrize(("length", "digits"), [(17, 64), (42, 64), (43, 63), (90, 16), (91, 0)])
def test_names_are_as_long_as_there_is_room(length: int, digits: int) -> None:
    folder = Path("/" + "x" * (length - 1))
    if not digits:
        with pytest.raises(OSError, match="too long"):
            shim_sockets.path(folder, "a/b/c")
        return
    found = shim_sockets.path(folder, "a/b/c")
    assert (found.parent, len(found.name)) == (folder, digits)
    assert len(os.fsencode(found)) <= 107
    assert found != shim_sockets.path(folder, "a/b/d")


@pytest.fixture
def home(folder: Path) -> Path:
    """A folder of ours, below one in which everybody has folders."""
    assert folder.parent.stat().st_mode & 0o1000
    return folder


def test_what_is_made_is_ours_alone(home: Path) -> None:
    shim_sockets.make(home / "a/s")
    assert not (home / "a/s").stat().st_mode & 0o022
    shim_sockets.make(home / "a/s")


@pytest.mark.parametrize("part", ["", "a", "a/s"])
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_others_may_write_into_a_part(home: Path, part: str, mode: int) -> None:
    shim_sockets.make(home / "a/s")
    (home / part).chmod(mode)
    with pytest.raises(PermissionError, match=f"others may write into .*{part}"):
        shim_sockets.make(home / "a/s")
    (home / part).chmod(mode | 0o1000)
    if part == "a/s":  # they could make the socket itself
        with pytest.raises(PermissionError, match="others may write into"):
            shim_sockets.make(home / "a/s")
    else:
        shim_sockets.make(home / "a/s")


@as_root
@pytest.mark.parametrize("part", ["a", "a/s"])
def test_a_part_is_somebody_elses(home: Path, part: str) -> None:
    shim_sockets.make(home / "a/s")
    os.chown(home / part, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match=f"{part} belongs to user {NOBODY}"):
        shim_sockets.make(home / "a/s")


@as_root
def test_links_are_looked_at_and_through(home: Path) -> None:
    shim_sockets.make(home / "a")
    (home / "link").symlink_to(home / "a")
    shim_sockets.make(home / "link/s")
    (home / "a").chmod(0o777)
    with pytest.raises(PermissionError, match="others may write into"):
        shim_sockets.make(home / "link/s")
    (home / "a").chmod(0o711)
    os.chown(home / "link", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(PermissionError, match="link belongs to user"):
        shim_sockets.make(home / "link/s")


@contextmanager
def listening(path: Path, user: int) -> Iterator[None]:
    code = (
        "import os, socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1])\n"
        "os.chmod(sys.argv[1], 0o777)\n"
        "os.setuid(int(sys.argv[2]))\n"
        "listener.listen()\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-S", "-c", code, str(path), str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@as_root
@pytest.mark.parametrize("protocol", ["ttrpc", "grpc"])
async def test_a_stranger_is_not_spoken_to(folder: Path, protocol: str) -> None:
    path = folder / "s.sock"
    refused = pytest.raises(Unknown, match=f"it is user {NOBODY} who listens there")
    with listening(path, NOBODY), refused:
        await connect(Bootstrap(f"unix://{path}", protocol), timeout=10)


async def test_this_user_is(folder: Path) -> None:
    path = folder / "s.sock"
    with listening(path, os.geteuid()):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            refuse_stranger(client)
        connection = await connect(Bootstrap(f"unix://{path}"), timeout=10)
        await connection.aclose()
