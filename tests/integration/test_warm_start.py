"""Shims that are forked from a process that has imported them, and processes that are shared."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from harness.client import Client
from harness.daemons import Daemon, Taskd, client
from harness.leaks import leaving_nothing, traces
from harness.real import BOTH_SHIMS, need

from taskd.proto.containerd.services.tasks.v1 import ListPidsRequest, WaitRequest

RUNC = "io.taskd.oci.v1"
PODS = {"io.kubernetes.cri.sandbox-id": "pod", "io.kubernetes.cri.container-type": "container"}


@contextmanager
def taskd(folder: Path, namespace: str, settings: str = "") -> Iterator[Taskd]:
    need("runc", "busybox")
    with (
        Taskd(folder / "taskd", "--log-level", "debug", settings=settings) as daemon,
        leaving_nothing(daemon, namespace),
    ):
        yield daemon


@asynccontextmanager
async def clients(daemon: Daemon, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)


def helpers(daemon: Daemon) -> list[int]:
    """The process that forks shims, and those of its forks that wait."""
    listed = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if b"taskd.shim.warm" in command(pid)]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def shims(daemon: Daemon, namespace: str) -> list[int]:
    """The shims that serve the namespace, and not the calls of their command line."""
    found = traces(daemon.state, daemon.root, namespace).processes
    return sorted(int(each.split()[0]) for each in found if "-address" in each)


async def warm(daemon: Daemon, times: int = 1) -> None:
    """Return when shims are forked."""
    with anyio.fail_after(30):
        while daemon.log.read_text().count("shims that start warm") < times:
            await anyio.sleep(0.05)


async def test_shims_outlive_the_process_that_forked_them(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    with taskd(folder, namespace, "[shims]\npool = 1\n") as daemon:
        async with clients(daemon, namespace, rootfs) as ask:
            assert not helpers(daemon)
            await ask.start("one", "/bin/sleep", "1000", runtime=RUNC)
            (helper,) = helpers(daemon)
            os.kill(helper, signal.SIGKILL)
            # Until there is another one shims are executed.
            await ask.start("two", "/bin/sleep", "1000", runtime=RUNC)
            await warm(daemon, 2)
            await ask.start("three", "/bin/sleep", "1000", runtime=RUNC)
            assert len(shims(daemon, namespace)) == 3
            for name in ("one", "two", "three"):
                assert await ask.end(name) == 137


async def test_the_daemon_takes_the_helper_with_it_and_leaves_the_shims(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    with taskd(folder, namespace) as daemon:
        async with clients(daemon, namespace, rootfs) as ask:
            pid = await ask.start("one", "/bin/sleep", "1000", runtime=RUNC)
        (helper,) = helpers(daemon)
        running = shims(daemon, namespace)
        daemon.kill()
        with anyio.fail_after(10):
            while command(helper):
                await anyio.sleep(0.05)
        assert shims(daemon, namespace) == running
        daemon.start()
        async with clients(daemon, namespace, rootfs) as ask:
            found = await ask.tasks.list_pids(ListPidsRequest(container_id="one"))
            assert [each.pid for each in found.processes] == [pid]
            assert await ask.end("one") == 137


async def test_without_the_helper(folder: Path, namespace: str, rootfs: Path) -> None:
    with taskd(folder, namespace, "[shims]\nwarm = false\n") as daemon:
        async with clients(daemon, namespace, rootfs) as ask:
            await ask.start("one", "/bin/sh", "-c", "exit 7", runtime=RUNC)
            await ask.tasks.wait(WaitRequest(container_id="one"))
            assert not helpers(daemon)
            assert await ask.remove("one") == 7


async def test_a_shared_shim(folder: Path, namespace: str, rootfs: Path) -> None:
    with taskd(folder, namespace, '[shims]\nshared = true\nidle = "0s"\n') as daemon:
        async with clients(daemon, namespace, rootfs) as ask:
            for name in ("one", "two", "three"):
                await ask.start(name, "/bin/sleep", "1000", runtime=RUNC)
            (shim,) = shims(daemon, namespace)
            assert await ask.end("one") == 137
            assert shims(daemon, namespace) == [shim]
            # The bundle of the first one is gone; the shim takes more.
            await ask.start("four", "/bin/sleep", "1000", runtime=RUNC)
            daemon.kill()
            daemon.start()
        async with clients(daemon, namespace, rootfs) as ask:
            for name in ("two", "three", "four"):
                assert await ask.end(name) == 137


async def test_a_shared_shim_is_killed(folder: Path, namespace: str, rootfs: Path) -> None:
    settings = '[shims]\nadopt = false\nshared = true\nidle = "0s"\n'
    with taskd(folder, namespace, settings) as daemon:
        async with clients(daemon, namespace, rootfs) as ask:
            pids = [
                await ask.start(name, "/bin/sleep", "1000", runtime=RUNC) for name in ("one", "two")
            ]
            (shim,) = shims(daemon, namespace)
            statuses: list[int] = []

            async def wait(name: str) -> None:
                answer = await ask.tasks.wait(WaitRequest(container_id=name))
                statuses.append(answer.exit_status)

            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(wait, "one")
                    group.start_soon(wait, "two")
                    await anyio.sleep(0.3)
                    os.kill(shim, signal.SIGKILL)
                assert statuses == [137, 137]
                while any(Path(f"/proc/{pid}").exists() for pid in pids):
                    await anyio.sleep(0.05)


@BOTH_SHIMS
@pytest.mark.usefixtures("clean")
async def test_the_containers_of_a_pod_share_a_shim(
    daemon: Daemon, namespace: str, rootfs: Path
) -> None:
    async with clients(daemon, namespace, rootfs) as ask:
        for name in ("pod", "one", "two"):
            await ask.start(name, "/bin/sleep", "1000", annotations=PODS)
        await ask.start("other", "/bin/sleep", "1000")
        with anyio.fail_after(20):  # for one that was started for more, and has none
            while len(shims(daemon, namespace)) != 2:
                await anyio.sleep(0.05)
        for name in ("one", "two", "pod", "other"):
            assert await ask.end(name) == 137
