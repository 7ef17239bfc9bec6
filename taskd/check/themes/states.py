"""Every method of the task service in every state of a container, and of an exec.

Source: containerd's ``pkg/process/init_state.go`` and ``exec_state.go``. Where those answer
UNKNOWN because of a state, FAILED_PRECONDITION says it better and is as good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from taskd.check import container, differences
from taskd.check.case import Case
from taskd.check.registry import Check, Difference, Failed, Play, Theme
from taskd.check.shim import CALL_SECONDS, OPTIONAL, Task
from taskd.errors import Code

PENDING = "pending"
"""No answer comes for now."""

Expected: TypeAlias = "tuple[Code, ...] | str"

YES = (Code.OK,)
NO_SUCH = (Code.NOT_FOUND,)
WRONG_STATE = (Code.UNKNOWN, Code.FAILED_PRECONDITION)
OVER = (Code.NOT_FOUND, Code.OK)
BAD_SIGNAL = (Code.UNKNOWN, Code.INVALID_ARGUMENT)

_PENDING_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """One call, and what has to come in which state."""

    name: str
    expected: Mapping[str, Expected]
    fields: Mapping[str, Any] = field(default_factory=dict)
    spoils: tuple[str, ...] = ()
    """States that this call ends."""
    known: Mapping[Code, Difference] = field(default_factory=dict)
    fatal: tuple[str, ...] = ()
    """States after which a shim may not survive its container: see `execs`."""

    @property
    def method(self) -> str:
        return self.name.split()[0]


_EXEC = {"spec": container.process_any(container.process(["/bin/true"], "none"))}
_RESOURCES = {"resources": container.resources({"pids": {"limit": 100}})}
_TO_THE_RUNTIME = {Code.UNKNOWN: differences.TWICE}

TASK_ROWS = (
    Row(
        "Create",
        {
            "none": YES,
            "created": (Code.ALREADY_EXISTS,),
            "running": (Code.ALREADY_EXISTS,),
            "paused": (Code.ALREADY_EXISTS,),
            "stopped": (Code.ALREADY_EXISTS,),
        },
        spoils=("none", "created", "running", "paused", "stopped"),
        known=_TO_THE_RUNTIME,
    ),
    Row(
        "Start",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": WRONG_STATE,
            "paused": WRONG_STATE,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
        spoils=("created",),
    ),
    Row(
        "State",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Wait",
        {
            "none": NO_SUCH,
            "created": PENDING,
            "running": PENDING,
            "paused": PENDING,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Kill",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": NO_SUCH,
            "deleted": NO_SUCH,
        },
        {"signal": 9},
        spoils=("created", "running", "paused"),
    ),
    Row(
        "Kill all",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": OVER,
            "deleted": NO_SUCH,
        },
        {"signal": 9, "all": True},
        spoils=("created", "running", "paused"),
    ),
    Row(
        "Kill with 0",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": NO_SUCH,
            "deleted": NO_SUCH,
        },
        {"signal": 0},
    ),
    Row(
        "Kill with 99",
        {
            "none": NO_SUCH,
            "created": BAD_SIGNAL,
            "running": BAD_SIGNAL,
            "paused": BAD_SIGNAL,
            "stopped": (*NO_SUCH, *BAD_SIGNAL),
            "deleted": NO_SUCH,
        },
        {"signal": 99},
    ),
    Row(
        "Delete",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": WRONG_STATE,
            "paused": WRONG_STATE,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
        spoils=("created", "stopped"),
    ),
    Row(
        "Exec",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": WRONG_STATE,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
        {"exec_id": "two", **_EXEC},
    ),
    Row(
        "Pause",
        {
            "none": NO_SUCH,
            "created": WRONG_STATE,
            "running": YES,
            "paused": WRONG_STATE,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
        spoils=("running",),
    ),
    Row(
        "Resume",
        {
            "none": NO_SUCH,
            "created": WRONG_STATE,
            "running": WRONG_STATE,
            "paused": YES,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
        spoils=("paused",),
    ),
    Row(
        "Pids",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": (*YES, *NO_SUCH, *WRONG_STATE),
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Stats",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": (*YES, *NO_SUCH, *WRONG_STATE),
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Update",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
        _RESOURCES,
        known={Code.FAILED_PRECONDITION: differences.NO_CGROUP},
    ),
    Row(
        "ResizePty",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": (*YES, *WRONG_STATE),
            "deleted": NO_SUCH,
        },
        {"width": 80, "height": 24},
    ),
    Row(
        "CloseIO",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
        {"stdin": True},
    ),
    Row(
        "Checkpoint",
        {
            "none": NO_SUCH,
            "created": WRONG_STATE,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Connect",
        {
            "none": YES,
            "created": YES,
            "running": YES,
            "paused": YES,
            "stopped": YES,
            "deleted": YES,
        },
    ),
)

EXEC_ROWS = (
    Row(
        "Exec",
        {
            "created": (Code.ALREADY_EXISTS,),
            "running": (Code.ALREADY_EXISTS,),
            "stopped": (Code.ALREADY_EXISTS,),
            "deleted": YES,
        },
        _EXEC,
        spoils=("deleted",),
    ),
    Row(
        "Start",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": WRONG_STATE,
            "stopped": WRONG_STATE,
            "deleted": NO_SUCH,
            "no task": WRONG_STATE,
        },
        spoils=("created", "running", "stopped", "no task"),
        fatal=("running", "stopped"),
    ),
    Row(
        "State",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "stopped": YES,
            "deleted": NO_SUCH,
            "no task": YES,
        },
    ),
    Row(
        "Wait",
        {
            "none": NO_SUCH,
            "created": PENDING,
            "running": PENDING,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
    ),
    Row(
        "Kill",
        {
            "none": NO_SUCH,
            "created": (Code.FAILED_PRECONDITION,),
            "running": YES,
            "stopped": NO_SUCH,
            "deleted": NO_SUCH,
            "no task": (Code.FAILED_PRECONDITION, *NO_SUCH),
        },
        {"signal": 9},
        spoils=("running",),
    ),
    Row(
        "Delete",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": WRONG_STATE,
            "stopped": YES,
            "deleted": NO_SUCH,
            "no task": YES,
        },
        spoils=("created", "stopped", "no task"),
    ),
    Row(
        "ResizePty",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "stopped": (*YES, *WRONG_STATE),
            "deleted": NO_SUCH,
        },
        {"width": 80, "height": 24},
    ),
    Row(
        "CloseIO",
        {
            "none": NO_SUCH,
            "created": YES,
            "running": YES,
            "stopped": YES,
            "deleted": NO_SUCH,
        },
        {"stdin": True},
        known={Code.UNKNOWN: differences.CLOSE_IO},
    ),
)


async def _none(case: Case) -> None:
    await case.task()


async def _created(case: Case) -> None:
    await case.created()


async def _running(case: Case) -> None:
    await case.running()


async def _paused(case: Case) -> None:
    await (await case.running()).call("Pause")


async def _stopped(case: Case) -> None:
    await case.stopped()


async def _deleted(case: Case) -> None:
    await (await case.stopped()).delete()


async def _exec_created(case: Case) -> None:
    await (await case.running()).exec("two")


async def _exec_running(case: Case) -> None:
    await _exec_created(case)
    await _task(case).start("two")


async def _exec_stopped(case: Case) -> None:
    await _exec_running(case)
    await _task(case).kill(exec_id="two")
    await _task(case).wait("two")


async def _exec_deleted(case: Case) -> None:
    await _exec_stopped(case)
    await _task(case).delete("two")


async def _exec_without_task(case: Case) -> None:
    await _exec_created(case)
    await _task(case).kill()
    await _task(case).wait()


TASK_STATES: Mapping[str, Play] = {
    "none": _none,
    "created": _created,
    "running": _running,
    "paused": _paused,
    "stopped": _stopped,
    "deleted": _deleted,
}
EXEC_STATES: Mapping[str, Play] = {
    "none": _running,
    "created": _exec_created,
    "running": _exec_running,
    "stopped": _exec_stopped,
    "deleted": _exec_deleted,
    "no task": _exec_without_task,
}


def _task(case: Case) -> Task:
    shim = case.shims[0]
    return Task(shim, shim.bundle)


async def _call(case: Case, row: Row, state: str, exec_id: str) -> None:
    expected, fatal = row.expected[state], state in row.fatal
    task = _task(case)
    fields = dict(row.fields)
    if exec_id:
        fields["exec_id"] = exec_id
    if expected == PENDING:
        await _pending(task, row.method, fields)
        return
    assert not isinstance(expected, str)
    if row.method == "Create":
        fields["bundle"] = str(task.bundle.path)
        fields["rootfs"] = container.rootfs_mounts(case.subject.rootfs)
        fields["options"] = case.subject.any_options
    await task.refused(row.method, *expected, known=row.known, **fields)
    if fatal:
        await task.shim.kill()


async def _pending(task: Task, method: str, fields: Mapping[str, Any]) -> None:
    waiting = asyncio.ensure_future(task.call(method, timeout=CALL_SECONDS, **fields))
    done, _ = await asyncio.wait([waiting], timeout=_PENDING_SECONDS)
    waiting.cancel()
    await asyncio.wait([waiting])
    if done:
        raise Failed(f"{method}({dict(fields)})", "no answer for now", task.case.calls[-1])


def _add(theme: Theme, rows: tuple[Row, ...], states: Mapping[str, Play], exec_id: str) -> None:
    # By state, for what is in one state to share a scene; the report puts rows where they belong.
    for state, scene in states.items():
        for row in rows:
            if state in row.expected:

                def run(case: Case, row: Row = row, state: str = state) -> Any:
                    return _call(case, row, state, exec_id)

                theme.checks.append(
                    Check(
                        theme.name,
                        f"{state}: {row.name}",
                        run,
                        about=row.method if row.method in OPTIONAL else "",
                        scene=scene,
                        spoils=state in row.spoils,
                        place=(row.name, state),
                    )
                )


_add(Theme("container by state"), TASK_ROWS, TASK_STATES, "")
_add(Theme("exec by state"), EXEC_ROWS, EXEC_STATES, "two")
