"""Memory that runs out on cgroup v2, and what is told of it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from harness.client import RUNC, Client
from harness.containers import process, spec
from harness.real import BOTH_SHIMS

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import SubscribeRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    ExecProcessRequest,
    GetRequest,
    MetricsRequest,
    StartRequest,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.io.containerd.cgroups.v2 import Metrics

pytestmark = [pytest.mark.usefixtures("clean"), BOTH_SHIMS]

HUNGRY = "dd if=/dev/zero of=/dev/null bs=512M count=1"


class Topics:
    """What is told of all containers, by topic."""

    def __init__(self, ask: Client) -> None:
        self.heard: list[str] = []
        self._ask = ask

    async def __aenter__(self) -> Topics:
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._listen)
        await anyio.sleep(0.5)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(*exc)

    async def _listen(self) -> None:
        wanted = SubscribeRequest(filters=['topic~="^/tasks/(oom|exit|exec-started)"'])
        async for envelope in self._ask.events.subscribe(wanted):
            self.heard.append(envelope.topic)

    async def soon(self, *topics: str) -> None:
        with anyio.fail_after(30):
            while not set(topics) <= set(self.heard):
                await anyio.sleep(0.05)


async def begin(ask: Client, script: str, **unified: str) -> None:
    resources = {"memory": {"limit": 32 << 20, "swap": 32 << 20}, "unified": unified}
    document = spec(ask.rootfs, ["/bin/sh", "-c", script], resources=resources)
    container = Container(id="one", runtime=ContainerRuntime(name=RUNC), spec=document)
    await ask.containers.create(CreateContainerRequest(container=container))
    await ask.tasks.create(CreateTaskRequest(container_id="one"))
    await ask.tasks.start(StartRequest(container_id="one"))


async def kills(ask: Client) -> int:
    (metric,) = (await ask.tasks.metrics(MetricsRequest(filters=["id==one"]))).metrics
    assert metric.data is not None
    events = Metrics.parse(metric.data.value).memory_events
    assert events is not None
    return events.oom_kill


async def test_of_init(ask: Client) -> None:
    async with Topics(ask) as topics:
        await begin(ask, f"sleep 1; exec {HUNGRY}")
        waited = await ask.tasks.wait(WaitRequest(container_id="one"))
        await topics.soon("/tasks/oom", "/tasks/exit")
    assert waited.exit_status == 137
    assert await ask.remove("one") == 137


async def test_of_an_exec(ask: Client) -> None:
    async with Topics(ask) as topics:
        await begin(ask, "sleep 1000")
        await anyio.sleep(1)
        spec = process(["/bin/sh", "-c", f"exec {HUNGRY}"])
        await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id="two", spec=spec))
        await ask.tasks.start(StartRequest(container_id="one", exec_id="two"))
        waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
        assert waited.exit_status == 137
        await topics.soon("/tasks/oom", "/tasks/exit")
    state = (await ask.tasks.get(GetRequest(container_id="one"))).process
    assert state is not None
    assert state.status is Status.RUNNING
    assert await kills(ask) == 1
    assert await ask.end("one") == 137


async def test_of_a_child(ask: Client) -> None:
    """Init goes on, and its status is its own."""
    async with Topics(ask) as topics:
        await begin(ask, f"sleep 1; {HUNGRY}; [ $? = 137 ] && sleep 2; exit 5")
        await topics.soon("/tasks/oom")
        assert "/tasks/exit" not in topics.heard
        waited = await ask.tasks.wait(WaitRequest(container_id="one"))
        assert waited.exit_status == 5
    assert await ask.remove("one") == 5


async def test_of_a_child_whose_group_dies_with_it(ask: Client) -> None:
    async with Topics(ask) as topics:
        await begin(ask, f"sleep 1; {HUNGRY}; sleep 1000", **{"memory.oom.group": "1"})
        waited = await ask.tasks.wait(WaitRequest(container_id="one"))
        assert waited.exit_status == 137
        await topics.soon("/tasks/oom", "/tasks/exit")
    assert await ask.remove("one") == 137
