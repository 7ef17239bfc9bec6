"""What is read of ``/proc``, whatever somebody has called their program or their folder."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.mounts import tmpfs
from harness.real import need

from taskd import mounts, procfs

HOME = Path(__file__).parents[2]
_PR_SET_NAME = 15
NAMES = [b"plain", b"\xff\xfe", b") Z 1 (", b"a\nb", b"\xc2\x85\xc3", b"  ", b"\xc3\xa4"]


@contextmanager
def named(name: bytes) -> Iterator[int]:
    """A process of that name."""
    ready, say = os.pipe()
    if (pid := os.fork()) == 0:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name)
        os.write(say, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(say)


@pytest.mark.parametrize("name", NAMES)
def test_processes(name: bytes) -> None:
    with named(name) as pid:
        found = procfs.stat(pid)
        assert (found.pid, found.parent, found.session) == (pid, os.getpid(), os.getsid(0))
        assert found.state in "SR"
        assert found.pages > 0
        assert found.started >= procfs.stat(os.getpid()).started
        assert pid in {each.pid for each in procfs.processes()}
    with pytest.raises(OSError, match="No such file"):
        procfs.stat(pid)


@pytest.mark.parametrize("name", [b"plain", b"\xff\xfe", b"a b\\040\n", b"\xc2\x85", b"\xc3\xa4"])
def test_mounts(tmp_path: Path, name: bytes) -> None:
    need("mount", "umount")
    folder = tmp_path / os.fsdecode(name)
    with tmpfs(folder, "size=16k"):
        (found,) = (each for each in procfs.mounts() if each.point == folder)
        assert found.kind == "tmpfs"
        assert "size=16k" in found.options
        (folder / "in").mkdir()
        mounts.mount("tmpfs", "tmpfs", folder / "in", [])
        assert mounts.mounts_below(tmp_path) == [folder / "in", folder]
        mounts.unmount_below(folder / "in")
        assert mounts.mounts_below(tmp_path) == [folder]


_AS_TEXT = re.compile(
    r'"/proc/[^"]*/(stat|status|comm|cmdline|environ|cgroup|maps|mounts|mountinfo)"\)'
    r"\.(read_text|open\(\))"
)


def test_nobody_takes_names_for_text() -> None:
    """One process of anybody's, with a name that is cut at its 15th byte, would stop them."""
    sources = [*(HOME / "taskd").rglob("*.py"), *(HOME / "shims").rglob("*.py")]
    assert len(sources) > 300
    assert not [path for path in sources if _AS_TEXT.search(path.read_text())]


def test_cgroups() -> None:
    expected = Path("/proc/self/cgroup").read_text().splitlines()
    found = [f"{number}:{','.join(names)}:{path}" for number, names, path in procfs.cgroups("self")]
    assert found == expected
