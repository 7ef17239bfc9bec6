"""Containers that are to be removed once they have ended, and a daemon that is away meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
from harness.daemons import Taskd
from harness.leaks import leaving_nothing
from harness.real import need

from taskd.client import connect

SECONDS = 60


async def test_what_ended_while_the_daemon_was_away(
    tmp_path: Path, rootfs: Path, namespace: str
) -> None:
    need("runc", "containerd-shim-runc-v2")
    folder = tmp_path / "d"
    with Taskd(folder) as daemon, leaving_nothing(daemon, namespace):
        async with connect(daemon.address, namespace, patience=SECONDS) as client:
            script = ["/bin/sh", "-c", "sleep 1000"]
            ended, stays = [
                await client.run(rootfs, script, id=name, output="log", remove=True)
                for name in ("ended", "stays")
            ]
            log = Path(ended.labels["io.taskd.client/log"])
            daemon.kill()
            os.kill(ended.pid, signal.SIGKILL)
            daemon.start()
            with anyio.fail_after(SECONDS):
                while [each.id for each in await client.list()] != ["stays"]:
                    await anyio.sleep(0.05)
            assert not log.exists()
            assert (await ended.wait()).code == 137
            await stays.kill()
            with anyio.fail_after(SECONDS):
                while await client.list():
                    await anyio.sleep(0.05)
