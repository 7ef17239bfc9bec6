"""How processes ended, told to who is not their parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from taskd import pidfd, procfs

NOBODY = 65534


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """One that exits with 7 when its input ends."""
    command = ["/bin/sh", "-c", "read line; exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def descriptor(child: subprocess.Popen[bytes]) -> Iterator[int]:
    opened = os.pidfd_open(child.pid)
    yield opened
    os.close(opened)


def end(child: subprocess.Popen[bytes], descriptor: int) -> None:
    """Let it end; it is a zombie then."""
    assert child.stdin
    child.stdin.close()
    select.select([descriptor], [], [], 10)


def test_one_that_runs(child: subprocess.Popen[bytes], descriptor: int) -> None:
    assert pidfd.exit_status(descriptor) is None
    assert pidfd.pid_of(descriptor) == child.pid


def test_a_zombie(child: subprocess.Popen[bytes], descriptor: int) -> None:
    end(child, descriptor)
    assert procfs.stat(child.pid).state == "Z"
    assert pidfd.exit_status(descriptor) == 7 << 8


def test_one_that_was_killed(child: subprocess.Popen[bytes], descriptor: int) -> None:
    child.kill()
    select.select([descriptor], [], [], 10)
    assert pidfd.exit_status(descriptor) == signal.SIGKILL


def test_one_that_was_reaped(child: subprocess.Popen[bytes], descriptor: int) -> None:
    end(child, descriptor)
    assert child.wait() == 7
    assert pidfd.pid_of(descriptor) == -1
    # Older kernels do not tell, and the zombie that would have told is gone.
    assert pidfd.exit_status(descriptor) == (7 << 8 if pidfd.tells_exits() else None)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_not_look_into_a_zombie_is_told_nothing(
    child: subprocess.Popen[bytes], descriptor: int
) -> None:
    """The kernel shows 0 in place of the status then, which would be success."""
    end(child, descriptor)
    os.seteuid(NOBODY)
    try:
        assert pidfd.exit_status(descriptor) is None
    finally:
        os.seteuid(0)
    assert pidfd.exit_status(descriptor) == 7 << 8


def test_one_that_is_known_by_when_it_was_started(child: subprocess.Popen[bytes]) -> None:
    started = procfs.stat(child.pid).started
    found = pidfd.open_known(child.pid, started)
    assert pidfd.pid_of(found) == child.pid
    os.close(found)
    with pytest.raises(ProcessLookupError):
        pidfd.open_known(child.pid, started + 1)
