"""What views of all tasks ask the daemon for."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from harness.daemons import Taskd

from taskd.client import Limits, connect, sampling
from taskd.client.local import Groups
from taskd.client.sampling import Row, Sampler
from taskd.client.trace import Conversation
from taskd.proto.taskd.v1 import FollowRequest

LIST = "/containerd.services.tasks.v1.Tasks/List"
METRICS = "/containerd.services.tasks.v1.Tasks/Metrics"


async def test_tasks_are_listed_when_something_has_happened(
    daemon: Taskd, namespace: str, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_LIST_SECONDS", 1e9)
    asked = 0

    async def count(conversation: Conversation) -> None:
        nonlocal asked
        async for said in conversation:
            asked += said.method == LIST and said.nanoseconds is None

    async def until(status: str) -> Row:
        with anyio.fail_after(60):
            while True:
                rows = await sampler.sample()
                if [row.status for row in rows] == [status]:
                    return rows[0]
                await anyio.sleep(0.02)

    async with connect(daemon.address, namespace) as client:
        request = FollowRequest(namespace=namespace)
        async with (
            client.conversation(request) as conversation,
            client.run(rootfs, ["/bin/sleep", "1000"]) as container,
            anyio.create_task_group() as group,
        ):
            group.start_soon(count, conversation)
            sampler = Sampler(client)
            group.start_soon(sampler.listen)
            await until("running")
            with anyio.fail_after(60):
                while not sampler._listens:
                    await anyio.sleep(0.02)
            await until("running")
            before = asked
            for _ in range(20):
                row = await until("running")
            assert row.memory is not None
            assert row.cpu is not None
            assert asked - before <= 2  # what has happened just now may be told late
            await container.pause()
            await until("paused")
            await container.resume()
            await until("running")
            await container.kill()
            await until("exited")
            assert asked - before <= 10
            await container.delete_task()
            with anyio.fail_after(60):
                while await sampler.sample():
                    await anyio.sleep(0.02)
            group.cancel_scope.cancel()


async def test_what_the_kernel_tells_the_daemon_is_not_asked(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    metrics = 0

    async def count(conversation: Conversation) -> None:
        nonlocal metrics
        async for said in conversation:
            metrics += said.method == METRICS and said.nanoseconds is None

    async with connect(daemon.address, namespace) as client:
        limits = Limits(memory="64m", pids=20)
        request = FollowRequest(namespace=namespace)
        async with (
            client.run(rootfs, ["/bin/sleep", "1000"], limits=limits) as container,
            client.conversation(request) as conversation,
            anyio.create_task_group() as group,
        ):
            group.start_soon(count, conversation)
            sampler = Sampler(client)
            for _ in range(3):
                (row,) = await sampler.sample()
                assert row.memory is not None
                assert (row.memory_limit, row.pids) == (64 << 20, 1)
            # It is heard after all that was before.
            told = await container.stats()
            with anyio.fail_after(60):
                while not metrics:
                    await anyio.sleep(0.02)
            assert metrics == 1

            # What it tells is what the daemon does; of a process that has no such cgroup, nothing.
            found, others = Groups().measure([container])
            assert others == []
            now = found[container.id]
            for each in ("memory_limit", "pids", "pids_limit"):
                assert getattr(now, each) == getattr(told, each)
            assert 0 < told.cpu <= now.cpu
            container.pid = os.getpid()
            assert Groups().measure([container]) == ({}, [container])
            group.cancel_scope.cancel()
