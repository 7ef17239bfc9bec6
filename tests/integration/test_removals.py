"""Containers that are to be removed once they have ended, and a daemon that is away meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
from harness.daemons import Taskd
from harness.leaks import leaving_nothing
from harness.real import need

from taskd.client import connect, logs
from taskd.errors import NotFound, TaskdError

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


async def test_a_name_that_is_used_again(tmp_path: Path, rootfs: Path, namespace: str) -> None:
    need("runc", "containerd-shim-runc-v2")
    with Taskd(tmp_path / "d") as daemon, leaving_nothing(daemon, namespace):
        async with connect(daemon.address, namespace, patience=SECONDS) as client:
            lives = []
            for code in (7, 8):
                with anyio.fail_after(SECONDS):
                    while await client.list():
                        await anyio.sleep(0.05)
                script = ["/bin/sh", "-c", f"exit {code}"]
                lives.append(await client.run(rootfs, script, id="one", output="log", remove=True))
            assert [(await each.wait()).code for each in lives] == [7, 8]
            with anyio.fail_after(SECONDS):
                while await client.list():
                    await anyio.sleep(0.05)


async def test_what_is_not_ours_stays(tmp_path: Path, rootfs: Path, namespace: str) -> None:
    """A label that an image could have, a log and FIFOs somewhere else."""
    need("runc", "containerd-shim-runc-v2")
    foreign = tmp_path / "foreign"
    foreign.write_text("text")
    with Taskd(tmp_path / "d") as daemon, leaving_nothing(daemon, namespace):
        async with connect(daemon.address, namespace, patience=SECONDS) as client:
            script = ["/bin/sh", "-c", "exit 3"]
            labels = {"io.taskd/remove": "ended"}
            async with client.run(rootfs, script, id="image", labels=labels) as stays:
                assert (await stays.wait()).code == 3
                goes = await client.run(
                    rootfs,
                    script,
                    id="goes",
                    remove=True,
                    labels={"io.taskd.client/log": str(foreign)},
                )
                assert (await goes.wait()).code == 3
                with anyio.fail_after(SECONDS):
                    while [each.id for each in await client.list()] != ["image"]:
                        await anyio.sleep(0.05)
            assert foreign.read_text() == "text"


async def test_a_log_that_is_removed_already(tmp_path: Path, rootfs: Path, namespace: str) -> None:
    """Whoever asks for it in that moment is not told that nothing was written."""
    need("runc", "containerd-shim-runc-v2")
    with Taskd(tmp_path / "d") as daemon, leaving_nothing(daemon, namespace):
        async with connect(daemon.address, namespace, patience=SECONDS) as client:
            script = ["/bin/sh", "-c", "sleep 1000"]
            made = await client.run(rootfs, script, id="one", output="log", remove=True)
            assert await made.logs().text() == ""
            made.remove_log()
            with pytest.raises(NotFound, match='container "one"'):
                await made.logs().text()
            await made.kill()
            with pytest.raises(NotFound, match='container "one"'), anyio.fail_after(SECONDS):
                await made.logs(follow=True).text()
            with anyio.fail_after(SECONDS):
                while await client.list():
                    await anyio.sleep(0.05)


async def test_a_start_that_fails_leaves_no_log(
    tmp_path: Path, rootfs: Path, namespace: str
) -> None:
    need("runc", "containerd-shim-runc-v2")
    with Taskd(tmp_path / "d") as daemon, leaving_nothing(daemon, namespace):
        async with connect(daemon.address, namespace, patience=SECONDS) as client:
            for remove in (False, True):
                with pytest.raises(TaskdError, match="nonexist"):
                    await client.run(rootfs, ["/nonexist"], id="one", output="log", remove=remove)
            assert await client.list() == []
            assert not logs.usual(namespace, "one").parent.parent.exists()
