"""A process that outlives a test's, and then clears up what that has left in a daemon's folder.

It is executed as a file and imports nothing of taskd before it has to: one that is never needed
costs an interpreter's start.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["reaper"]


@contextmanager
def reaper(folder: Path) -> Iterator[None]:
    """Have `folder`, and all that runs in it, removed if this process ends within the context."""
    mine = os.pidfd_open(os.getpid())
    try:
        packages = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(mine), str(packages), str(folder)],
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


def _main(parent: int, packages: str, folder: Path) -> None:
    select.select([parent], [], [])
    sys.path.append(packages)
    import asyncio
    import shutil

    from taskd.config import Config
    from taskd.daemon import running
    from taskd.testing.clearing import clear

    async def reap() -> None:
        config = Config(root=folder / "root", state=folder / "state")
        async with running(config):
            await clear(config.socket)

    try:
        if folder.exists():
            asyncio.run(reap())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
