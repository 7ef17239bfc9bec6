"""Every method of the task service in every state that it can meet, of a task and of an exec."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from harness.containers import process
from parity.recorder import PATIENCE_SECONDS, Recorder
from parity.scenarios import Play, scenario

from taskd.proto.google import protobuf

RESOURCES = protobuf.Any(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
    value=json.dumps({"pids": {"limit": 50}}).encode(),
)

Call = Callable[[Recorder], Awaitable[Any]]


async def kill(r: Recorder, **fields: Any) -> None:
    """What comes after a kill is the same only when the process is gone."""
    await r.tasks.kill(container_id="one", signal=9, **fields)
    await r.tasks.wait(container_id="one", exec_id=fields.get("exec_id", ""), patience=1)


TASK_CALLS: dict[str, Call] = {
    "create": lambda r: r.tasks.create(container_id="one"),
    "start": lambda r: r.tasks.start(container_id="one"),
    "delete": lambda r: r.tasks.delete(container_id="one"),
    "get": lambda r: r.tasks.get(container_id="one"),
    "list": lambda r: r.tasks.list(),
    "kill": lambda r: kill(r),
    "kill with 0": lambda r: r.tasks.kill(container_id="one", signal=0),
    "kill with 99": lambda r: r.tasks.kill(container_id="one", signal=99),
    "kill all": lambda r: kill(r, all=True),
    "exec": lambda r: r.tasks.exec(container_id="one", exec_id="two", spec=process(["/bin/true"])),
    "resize": lambda r: r.tasks.resize_pty(container_id="one", width=80, height=24),
    "close io": lambda r: r.tasks.close_io(container_id="one", stdin=True),
    "pause": lambda r: r.tasks.pause(container_id="one"),
    "resume": lambda r: r.tasks.resume(container_id="one"),
    "list pids": lambda r: r.tasks.list_pids(container_id="one"),
    "update": lambda r: r.tasks.update(container_id="one", resources=RESOURCES),
    "metrics": lambda r: r.tasks.metrics(filters=["id==one"]),
    "wait": lambda r: r.tasks.wait(container_id="one", patience=PATIENCE_SECONDS),
    "delete container": lambda r: r.containers.delete(id="one"),
}


async def nothing(r: Recorder) -> None:
    pass


async def paused(r: Recorder) -> None:
    await r.running()
    await r.tasks.pause(container_id="one")


async def killed(r: Recorder) -> None:
    await r.running()
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.wait(container_id="one")


async def deleted(r: Recorder) -> None:
    await killed(r)
    await r.tasks.delete(container_id="one")


TASK_STATES: dict[str, Play] = {
    "no container": nothing,
    "no task": lambda r: r.container(),
    "created": lambda r: r.created(),
    "running": lambda r: r.running(),
    "paused": paused,
    "stopped": killed,
    "deleted": deleted,
}

EXEC_CALLS: dict[str, Call] = {
    "exec": lambda r: r.tasks.exec(container_id="one", exec_id="two", spec=process(["/bin/true"])),
    "start": lambda r: r.tasks.start(container_id="one", exec_id="two"),
    "delete": lambda r: r.tasks.delete_process(container_id="one", exec_id="two"),
    "get": lambda r: r.tasks.get(container_id="one", exec_id="two"),
    "kill": lambda r: kill(r, exec_id="two"),
    "kill with 0": lambda r: r.tasks.kill(container_id="one", exec_id="two", signal=0),
    "resize": lambda r: r.tasks.resize_pty(container_id="one", exec_id="two", width=1, height=1),
    "close io": lambda r: r.tasks.close_io(container_id="one", exec_id="two", stdin=True),
    "wait": lambda r: r.tasks.wait(container_id="one", exec_id="two", patience=PATIENCE_SECONDS),
}


async def exec_created(r: Recorder) -> None:
    await r.running()
    command = process(["/bin/sleep", "1000"])
    await r.tasks.exec(container_id="one", exec_id="two", spec=command)


async def exec_running(r: Recorder) -> None:
    await exec_created(r)
    await r.tasks.start(container_id="one", exec_id="two")


async def exec_stopped(r: Recorder) -> None:
    await exec_running(r)
    await r.tasks.kill(container_id="one", exec_id="two", signal=9)
    await r.tasks.wait(container_id="one", exec_id="two")


async def exec_deleted(r: Recorder) -> None:
    await exec_stopped(r)
    await r.tasks.delete_process(container_id="one", exec_id="two")


EXEC_STATES: dict[str, Play] = {
    "no exec": lambda r: r.running(),
    "created": exec_created,
    "running": exec_running,
    "stopped": exec_stopped,
    "deleted": exec_deleted,
}


def _add(state: Play, call: Call, name: str, after: Call) -> None:
    @scenario(name)
    async def play(r: Recorder) -> None:
        await state(r)
        await call(r)
        await after(r)


for _state, _reach in TASK_STATES.items():
    for _name, _call in TASK_CALLS.items():
        _add(_reach, _call, f"task {_state}: {_name}", TASK_CALLS["list"])
for _state, _reach in EXEC_STATES.items():
    for _name, _call in EXEC_CALLS.items():
        _add(_reach, _call, f"exec {_state}: {_name}", EXEC_CALLS["get"])
