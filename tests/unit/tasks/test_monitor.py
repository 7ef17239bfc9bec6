"""The monitor, with a shim that is none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio

from taskd.events import Bus, Journal
from taskd.runtime.bundle import Bundle
from taskd.runtime.shim import Shim
from taskd.runtime.types import Exit, Status, TaskState
from taskd.tasks import Monitor

PID = 42


class Stopped:
    """A task whose init process has exited; of the shim's API, what the monitor calls."""

    tells_oom = True

    async def wait(self, exec_id: str) -> Exit:
        return Exit(0, 0, time.time_ns())


async def test_what_is_deleted_before_it_is_watched_is_told_once(tmp_path: Path) -> None:
    """A client that has waited for the daemon may delete what that has only just found."""
    nothing: Any = None
    task: Any = Stopped()
    with Journal(tmp_path / "events.db") as journal:
        async with anyio.create_task_group() as group:
            monitor = Monitor(Bus(journal), journal, group)
            bundle = Bundle("default", "one", tmp_path)
            spawn = group.start_soon
            shim = Shim(bundle, nothing, nothing, nothing, nothing, task, monitor, spawn)
            shim.process("").pid = PID
            await monitor.found(shim, TaskState(pid=PID, status=Status.STOPPED))
            await monitor.reconcile({("default", "one")})
            await monitor.deleted(shim, Exit(PID, 0, time.time_ns()))
            await anyio.wait_all_tasks_blocked()
        told = [entry.envelope.topic for entry in journal.read(0, 100)]
    assert told == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
