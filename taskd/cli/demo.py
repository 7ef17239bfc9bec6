"""``taskd demo``: the main job, end to end, in a daemon of its own that leaves nothing behind."""

from __future__ import annotations

import anyio

from taskd import plugins
from taskd.errors import FailedPrecondition
from taskd.testing import Daemon, daemon

__all__ = ["demo"]

RUNTIME = "io.taskd.process.v1"
COMMAND = ["/bin/sh", "-c", 'echo "hello from process $$"; exit 42']


async def demo() -> None:
    """Start a daemon, run a task in it through gRPC, and print what happens. Needs no root.

    Raises `FailedPrecondition` if the shim for plain processes is not installed.
    """
    if RUNTIME not in plugins.installed():
        raise FailedPrecondition(
            f"the demo needs {RUNTIME} (pip install taskd-containers)", verbatim=True
        )
    async with daemon("demo") as taskd:
        print(f"daemon    serves on {taskd.socket}")
        async with anyio.create_task_group() as group:
            await group.start(_print_events, taskd)
            await _run_container(taskd)
            await anyio.sleep(0.1)  # for the last event, which the shim sends by itself
            group.cancel_scope.cancel()


async def _run_container(taskd: Daemon) -> None:
    async with taskd.container(RUNTIME, COMMAND, id="hello") as container:
        print(f"task      created, pid {container.pid}")
        done = await container.run()
        for line in done.text.splitlines():
            print(f"output    {line}")
        print(f"task      exited with status {done.code}")


async def _print_events(
    taskd: Daemon, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    async with taskd.client.events() as events:
        task_status.started()
        async for event in events:
            print(f"event     {event.topic} {event.message}")
