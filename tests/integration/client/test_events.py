"""`taskd.client`: events, on taskd and on each containerd, restarts included."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest
from harness.daemons import Daemon
from harness.servers import Server

from taskd.client import Client, Event, connect
from taskd.errors import Unavailable, Unimplemented
from taskd.proto.containerd.events import TaskExit

TRUE = ["/bin/true"]
LIFE = ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def until(client: Client, topic: str, found: list[Event], ready: anyio.Event) -> None:
    async with client.events() as events:
        ready.set()
        async for event in events:
            found.append(event)
            if event.topic == topic:
                return


async def test_a_life_is_told(client: Client, rootfs: Path) -> None:
    found: list[Event] = []
    ready = anyio.Event()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(until, client, "/containers/delete", found, ready)
            await ready.wait()
            async with connect(client.address, f"{client.namespace}-other") as other:
                await (await other.create(rootfs, TRUE)).delete()
            begun = time.time_ns()
            async with client.run(rootfs, ["/bin/sh", "-c", "exit 5"], id="one") as container:
                await container.wait()
        async with connect(client.address, f"{client.namespace}-other") as other:
            assert not await other.list()
    assert [event.topic for event in found if event.topic in LIFE] == LIFE
    assert {event.container_id for event in found} == {"one"}
    (exit_,) = (event for event in found if event.topic == "/tasks/exit")
    assert isinstance(exit_.message, TaskExit)
    assert exit_.message.exit_status == 5
    assert begun < exit_.at < time.time_ns()


async def test_filters(client: Client, rootfs: Path) -> None:
    async with client.events('topic=="/tasks/exit"', 'topic=="/tasks/start"') as events:
        async with client.run(rootfs, TRUE, id="one") as container:
            await container.wait()
        found = aiter(events)
        with anyio.fail_after(10):
            topics = {(await anext(found)).topic for _ in range(2)}
    assert topics == {"/tasks/start", "/tasks/exit"}


async def test_the_past(client: Client, server: Server, rootfs: Path) -> None:
    if not server.is_taskd:
        with pytest.raises(Unimplemented, match="is no taskd"):
            async with client.events(since=0):
                pass
        return
    before = time.time_ns()
    async with client.run(rootfs, TRUE) as container:
        await container.wait()
    past = [event async for event in client.events(since=before, follow=False)]
    assert [event.topic for event in past if event.topic in LIFE] == LIFE
    rest = [event.position async for event in client.events(after=past[1].position, follow=False)]
    assert rest == [event.position for event in past[2:]]


async def test_a_daemon_that_is_restarted(
    client: Client, served: Daemon, server: Server, rootfs: Path
) -> None:
    """Who waits for a container goes on waiting, and events go on: with taskd, without a gap."""
    found: list[Event] = []
    ready = anyio.Event()
    script = "while [ ! -e /signal/go ]; do sleep 0.1; done; exit 3"
    signal = rootfs / "signal"
    signal.mkdir(exist_ok=True)
    (signal / "go").unlink(missing_ok=True)
    with anyio.fail_after(60):
        async with client.run(rootfs, ["/bin/sh", "-c", script], id="long") as container:
            async with anyio.create_task_group() as group:
                group.start_soon(until, client, "/tasks/exit", found, ready)
                await ready.wait()
                group.start_soon(container.wait)
                await anyio.sleep(0.1)
                await anyio.to_thread.run_sync(served.kill)
                with pytest.raises(Unavailable):
                    async with connect(served.address):
                        pass
                if server.is_taskd:
                    (signal / "go").touch()
                    await anyio.sleep(1)  # it ends while nobody is there
                await anyio.to_thread.run_sync(served.start)
                number = 0
                while not found or found[-1].topic != "/tasks/exit":
                    if not server.is_taskd:  # nobody says when it listens again
                        number += 1
                        async with client.run(rootfs, TRUE, id=f"short-{number}") as short:
                            await short.wait()
                    await anyio.sleep(0.05)
                (signal / "go").touch()
            assert (await container.wait()).code == 3
    exits = [event.container_id for event in found if event.topic == "/tasks/exit"]
    assert len(exits) == 1
    assert exits[0].startswith("long" if server.is_taskd else "short")
