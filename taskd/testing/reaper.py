"""A process that outlives a test's, and then clears up what that has left of a daemon.

It is executed as a file and imports nothing of taskd before it has to: one that is never needed
costs an interpreter's start.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["reaper"]


@contextmanager
def reaper(folder: Path, namespace: str = "") -> Iterator[None]:
    """Have `folder` removed if this process ends within the context, and all that runs in it.

    The daemon that runs on it, in whatever process, is killed. With a `namespace`, `folder` is the
    socket of a daemon that stays, as all does that is not of the namespace.
    """
    mine = os.pidfd_open(os.getpid())
    try:
        packages = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(mine), str(packages), str(folder), namespace],
            pass_fds=[mine],
            stdin=subprocess.DEVNULL,
            cwd="/",
            # What is typed at the test is not meant for it.
            start_new_session=True,
        )
    finally:
        os.close(mine)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _main(parent: int, packages: str, folder: Path, namespace: str) -> None:
    select.select([parent], [], [])
    sys.path.append(packages)
    import asyncio
    import shutil

    from taskd.testing.clearing import clear

    if namespace:
        asyncio.run(clear(folder, namespace))
        return
    if not folder.exists():
        return
    _kill_daemon(folder / "root/lock")

    async def reap() -> None:
        from taskd.config import Config
        from taskd.daemon import running

        config = Config(root=folder / "root", state=folder / "state")
        async with running(config):
            await clear(config.socket)

    try:
        asyncio.run(reap())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kill_daemon(lock: Path) -> None:
    """Kill the one that has `lock`, if it lives, and wait until it has gone."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # It is held, so that the pid in it is that of the holder.
        with suppress(OSError, ValueError):
            os.kill(int(os.read(descriptor, 32)), signal.SIGKILL)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
