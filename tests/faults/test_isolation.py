"""A shim that fails or hangs costs its own task, and nobody else anything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from grpclib.exceptions import GRPCError, StreamTerminatedError
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.faulty_shim import install
from harness.leaks import leaving_nothing, traces
from harness.real import BOTH_SHIMS, MORTAL

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    ListTasksRequest,
    MetricsRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

SOON = 1.0
"""Seconds in which a call about a healthy task ends on any machine."""
STATE_TIMEOUT = 2.0


class Driver:
    """One client."""

    def __init__(self, daemon: Taskd, namespace: str, rootfs: Path) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self._rootfs = rootfs

    async def make(self, container: str, runtime: str = "io.containerd.runc.v2") -> None:
        async with client(self.daemon.address, self.namespace) as channel:
            record = Container(
                id=container,
                runtime=ContainerRuntime(name=runtime),
                spec=spec(self._rootfs, ["sleep", "1000"]),
            )
            await ContainersStub(channel).create(CreateContainerRequest(container=record))

    async def live(self, container: str, timeout: float) -> None:
        """Do everything that a client does with a task; each call may fail, in its time."""
        for method, request in (
            ("create", CreateTaskRequest(container_id=container)),
            ("start", StartRequest(container_id=container)),
            ("get", GetRequest(container_id=container)),
            ("kill", KillRequest(container_id=container, signal=9)),
            ("wait", WaitRequest(container_id=container)),
            ("delete", DeleteTaskRequest(container_id=container)),
        ):
            async with client(self.daemon.address, self.namespace) as channel:
                with suppress(GRPCError, StreamTerminatedError, TimeoutError):
                    await getattr(TasksStub(channel), method)(request, timeout=timeout)

    async def states(self) -> dict[str, str]:
        async with client(self.daemon.address, self.namespace) as channel:
            listed = (await TasksStub(channel).list(ListTasksRequest())).tasks
            return {process.id: process.status.name for process in listed}

    async def metrics(self) -> list[str]:
        async with client(self.daemon.address, self.namespace) as channel:
            return [
                each.id for each in (await TasksStub(channel).metrics(MetricsRequest())).metrics
            ]

    async def get(self, container: str) -> str:
        async with client(self.daemon.address, self.namespace) as channel:
            answer = await TasksStub(channel).get(GetRequest(container_id=container))
            assert answer.process is not None
            return answer.process.status.name


@pytest.fixture
async def driver(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Driver]:
    with leaving_nothing(daemon, namespace):
        yield Driver(daemon, namespace, rootfs)


def shims(driver: Driver, container: str) -> list[int]:
    return [
        int(line.split()[0])
        for line in traces(driver.daemon.state, driver.daemon.root, driver.namespace).processes
        if f"-id {container} " in line
    ]


@contextmanager
def stopped(driver: Driver, *containers: str) -> Iterator[None]:
    pids = [pid for container in containers for pid in shims(driver, container)]
    assert len(pids) >= len(containers)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def start(driver: Driver, container: str) -> None:
    await driver.make(container)
    async with client(driver.daemon.address, driver.namespace) as channel:
        await TasksStub(channel).create(CreateTaskRequest(container_id=container))
        await TasksStub(channel).start(StartRequest(container_id=container))


async def end(driver: Driver, container: str) -> int:
    async with client(driver.daemon.address, driver.namespace) as channel:
        tasks = TasksStub(channel)
        await tasks.kill(KillRequest(container_id=container, signal=9))
        await tasks.wait(WaitRequest(container_id=container))
        return (await tasks.delete(DeleteTaskRequest(container_id=container))).exit_status


@pytest.mark.parametrize("fault", ["close", "garbage", "nonsense", "silence", "exit"])
@pytest.mark.parametrize(
    "method", ["Create", "Start", "State", "Wait", "Kill", "Delete", "Shutdown"]
)
async def test_a_fault_stays_where_it_is(
    driver: Driver, folder: Path, method: str, fault: str
) -> None:
    await start(driver, "well")
    await driver.make("ill", str(install(folder, method, fault)))
    slowest = 0.0
    finished = False

    async def watch_the_other() -> None:
        nonlocal slowest
        while not finished:
            begin = time.monotonic()
            assert await driver.get("well") == "RUNNING"
            slowest = max(slowest, time.monotonic() - begin)
            await anyio.sleep(0.02)

    async with anyio.create_task_group() as group:
        group.start_soon(watch_the_other)
        await driver.live("ill", timeout=1.0)
        begin = time.monotonic()
        states = await driver.states()
        assert time.monotonic() - begin < STATE_TIMEOUT + SOON
        assert states.pop("well") == "RUNNING"
        assert set(states) <= {"ill"}
        assert "well" in await driver.metrics()
        finished = True
    assert slowest < SOON
    # What neither answers nor ends is ended by whoever operates the machine.
    for pid in shims(driver, "ill"):
        os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(10):
        while "ill" in await driver.states():
            await anyio.sleep(0.05)
    assert await end(driver, "well") == 137


@BOTH_SHIMS
@MORTAL
async def test_many_hung_shims_hold_up_neither_list_nor_restart(driver: Driver) -> None:
    hung = [f"hung{number}" for number in range(5)]
    for container in [*hung, "well"]:
        await start(driver, container)
    expected = {**dict.fromkeys(hung, "UNKNOWN"), "well": "RUNNING"}
    with stopped(driver, *hung):
        begin = time.monotonic()
        assert await driver.states() == expected
        assert await driver.metrics() == ["well"]
        assert time.monotonic() - begin < 2 * STATE_TIMEOUT + SOON
        begin = time.monotonic()
        driver.daemon.stop()
        assert time.monotonic() - begin < 2 * SOON
        begin = time.monotonic()
        driver.daemon.start()
        assert await driver.get("well") == "RUNNING"
        assert time.monotonic() - begin < 5 * SOON
        assert await driver.states() == expected
        assert await end(driver, "well") == 137
        with anyio.fail_after(15):
            while driver.daemon.log.read_text().count("does not answer") < len(hung):
                await anyio.sleep(0.1)
    with anyio.fail_after(15):
        while await driver.states() != dict.fromkeys(hung, "RUNNING"):
            await anyio.sleep(0.1)
        while driver.daemon.log.read_text().count("answers again") < len(hung):
            await anyio.sleep(0.1)
    for container in hung:
        assert await end(driver, container) == 137
