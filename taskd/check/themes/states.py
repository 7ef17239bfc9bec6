"""Every method of the task service in every state of a container, and of an exec.

Source: containerd's ``pkg/process/init_state.go`` and ``exec_state.go``. Where those answer
UNKNOWN because of a state, FAILED_PRECONDITION says it better and is as good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from taskd.check import container, differences
from taskd.check.case import Case
from taskd.check.programs import EXIT
from taskd.check.registry import CHECKS, Check, Difference, Failed, Play, running
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
    """States in which it ends what others would share."""
    known: Mapping[Code, Difference] = field(default_factory=dict)
    known_in: tuple[str, ...] = ()
    """The states in which that may come; without any, in all."""
    fatal: tuple[str, ...] = ()
    """States after which a shim may not survive its container: see `execs`."""

    @property
    def method(self) -> str:
        return self.name.split()[0]


def _in(**expected: Expected) -> Mapping[str, Expected]:
    return {state.replace("_", " "): each for state, each in expected.items()}


_RESOURCES = {"resources": container.resources({"pids": {"limit": 100}})}
_NO_PROCESS = {Code.FAILED_PRECONDITION: differences.NO_PROCESS_YET}
_TO_THE_RUNTIME = {Code.UNKNOWN: differences.TWICE}

TASK_ROWS = (
    Row(
        "Create",
        _in(
            none=YES,
            created=(Code.ALREADY_EXISTS,),
            running=(Code.ALREADY_EXISTS,),
            paused=(Code.ALREADY_EXISTS,),
            stopped=(Code.ALREADY_EXISTS,),
        ),
        spoils=("none", "created", "running", "paused", "stopped"),
        known=_TO_THE_RUNTIME,
    ),
    Row(
        "Start",
        _in(
            none=NO_SUCH,
            created=YES,
            running=WRONG_STATE,
            paused=WRONG_STATE,
            stopped=WRONG_STATE,
            deleted=NO_SUCH,
        ),
        spoils=("created",),
    ),
    Row(
        "State",
        _in(none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=YES, deleted=NO_SUCH),
    ),
    Row(
        "Wait",
        _in(
            none=NO_SUCH,
            created=PENDING,
            running=PENDING,
            paused=PENDING,
            stopped=YES,
            deleted=NO_SUCH,
        ),
    ),
    Row(
        "Kill",
        _in(none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=NO_SUCH, deleted=NO_SUCH),
        {"signal": 9},
        spoils=("created", "running", "paused"),
        known=_NO_PROCESS,
        known_in=("created",),
    ),
    Row(
        "Kill all",
        _in(none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=OVER, deleted=NO_SUCH),
        {"signal": 9, "all": True},
        spoils=("created", "running", "paused"),
        known=_NO_PROCESS,
        known_in=("created",),
    ),
    Row(
        "Kill with 0",
        _in(none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=NO_SUCH, deleted=NO_SUCH),
        {"signal": 0},
        known=_NO_PROCESS,
        known_in=("created",),
    ),
    Row(
        "Kill with 99",
        _in(
            none=NO_SUCH,
            created=BAD_SIGNAL,
            running=BAD_SIGNAL,
            paused=BAD_SIGNAL,
            stopped=(*NO_SUCH, *BAD_SIGNAL),
            deleted=NO_SUCH,
        ),
        {"signal": 99},
        known=_NO_PROCESS,
        known_in=("created",),
    ),
    Row(
        "Delete",
        _in(
            none=NO_SUCH,
            created=YES,
            running=WRONG_STATE,
            paused=WRONG_STATE,
            stopped=YES,
            deleted=NO_SUCH,
        ),
        spoils=("created", "stopped"),
    ),
    Row(
        "Exec",
        _in(
            none=NO_SUCH,
            created=YES,
            running=YES,
            paused=WRONG_STATE,
            stopped=WRONG_STATE,
            deleted=NO_SUCH,
        ),
        {"exec_id": "two"},
    ),
    Row(
        "Pause",
        _in(
            none=NO_SUCH,
            created=WRONG_STATE,
            running=YES,
            paused=WRONG_STATE,
            stopped=WRONG_STATE,
            deleted=NO_SUCH,
        ),
        spoils=("running",),
    ),
    Row(
        "Resume",
        _in(
            none=NO_SUCH,
            created=WRONG_STATE,
            running=WRONG_STATE,
            paused=YES,
            stopped=WRONG_STATE,
            deleted=NO_SUCH,
        ),
        spoils=("paused",),
    ),
    Row(
        "Pids",
        _in(
            none=NO_SUCH,
            created=YES,
            running=YES,
            paused=YES,
            stopped=(*YES, *NO_SUCH, *WRONG_STATE),
            deleted=NO_SUCH,
        ),
    ),
    Row(
        "Stats",
        _in(
            none=NO_SUCH,
            created=YES,
            running=YES,
            paused=YES,
            stopped=(*YES, *NO_SUCH, *WRONG_STATE),
            deleted=NO_SUCH,
        ),
    ),
    Row(
        "Update",
        _in(
            none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=WRONG_STATE, deleted=NO_SUCH
        ),
        _RESOURCES,
        known={Code.FAILED_PRECONDITION: differences.NO_CGROUP},
    ),
    Row(
        "ResizePty",
        _in(
            none=NO_SUCH,
            created=YES,
            running=YES,
            paused=YES,
            stopped=(*YES, *WRONG_STATE),
            deleted=NO_SUCH,
        ),
        {"width": 80, "height": 24},
    ),
    Row(
        "CloseIO",
        _in(none=NO_SUCH, created=YES, running=YES, paused=YES, stopped=YES, deleted=NO_SUCH),
        {"stdin": True},
    ),
    Row(
        "Checkpoint",
        _in(none=NO_SUCH, created=WRONG_STATE, stopped=WRONG_STATE, deleted=NO_SUCH),
    ),
    Row(
        "Connect",
        _in(none=YES, created=YES, running=YES, paused=YES, stopped=YES, deleted=YES),
    ),
)

EXEC_ROWS = (
    Row(
        "Exec",
        _in(
            none=YES,
            created=(Code.ALREADY_EXISTS,),
            running=(Code.ALREADY_EXISTS,),
            stopped=(Code.ALREADY_EXISTS,),
            deleted=YES,
        ),
    ),
    Row(
        "Start",
        _in(
            none=NO_SUCH,
            created=YES,
            running=WRONG_STATE,
            stopped=WRONG_STATE,
            deleted=NO_SUCH,
            no_task=WRONG_STATE,
        ),
        spoils=("running", "stopped", "no task"),
        fatal=("running", "stopped"),
    ),
    Row(
        "State",
        _in(none=NO_SUCH, created=YES, running=YES, stopped=YES, deleted=NO_SUCH, no_task=YES),
        spoils=("no task",),
    ),
    Row(
        "Wait",
        _in(none=NO_SUCH, created=PENDING, running=PENDING, stopped=YES, deleted=NO_SUCH),
    ),
    Row(
        "Kill",
        _in(
            none=NO_SUCH,
            created=(Code.FAILED_PRECONDITION,),
            running=YES,
            stopped=NO_SUCH,
            deleted=NO_SUCH,
            no_task=(Code.FAILED_PRECONDITION, *NO_SUCH),
        ),
        {"signal": 9},
        spoils=("no task",),
    ),
    Row(
        "Delete",
        _in(
            none=NO_SUCH,
            created=YES,
            running=WRONG_STATE,
            stopped=YES,
            deleted=NO_SUCH,
            no_task=YES,
        ),
        spoils=("no task",),
    ),
    Row(
        "ResizePty",
        _in(none=NO_SUCH, created=YES, running=YES, stopped=(*YES, *WRONG_STATE), deleted=NO_SUCH),
        {"width": 80, "height": 24},
    ),
    Row(
        "CloseIO",
        _in(none=NO_SUCH, created=YES, running=YES, stopped=YES, deleted=NO_SUCH),
        {"stdin": True},
        known={Code.UNKNOWN: differences.CLOSE_IO},
    ),
)


async def _none(case: Case) -> None:
    await case.task()


async def _created(case: Case) -> None:
    await case.created()


async def _paused(case: Case) -> None:
    await (await case.running()).call("Pause")


async def _stopped(case: Case) -> None:
    await case.stopped()


async def _deleted(case: Case) -> None:
    await (await case.stopped()).delete()


async def _exec_created(task: Task, exec_id: str) -> None:
    await task.exec(exec_id)


async def _exec_running(task: Task, exec_id: str) -> None:
    await task.exec(exec_id)
    await task.start(exec_id)


async def _exec_stopped(task: Task, exec_id: str) -> None:
    await _exec_running(task, exec_id)
    await task.kill(exec_id=exec_id)
    await task.wait(exec_id)


async def _exec_deleted(task: Task, exec_id: str) -> None:
    await _exec_stopped(task, exec_id)
    await task.delete(exec_id)


async def _exec_without_task(task: Task, exec_id: str) -> None:
    await task.exec(exec_id)
    await task.kill()
    await task.wait()


TASK_STATES: Mapping[str, Play] = {
    "none": _none,
    "created": _created,
    "running": running,
    "paused": _paused,
    "stopped": _stopped,
    "deleted": _deleted,
}
EXEC_STATES: Mapping[str, Callable[[Task, str], Awaitable[None]] | None] = {
    "none": None,
    "created": _exec_created,
    "running": _exec_running,
    "stopped": _exec_stopped,
    "deleted": _exec_deleted,
    "no task": _exec_without_task,
}


async def _call(row: Row, state: str, case: Case) -> None:
    """Make the call about the container, and see what comes."""
    fields = dict(row.fields)
    if row.method == "Create":
        fields["bundle"] = str(case.container.bundle.path)
        fields["rootfs"] = container.rootfs_mounts(case.subject.rootfs)
        fields["options"] = case.subject.any_options
    elif row.method == "Exec":
        fields |= _process(case)
    await _expect(case.container, row, state, fields)


async def _call_exec(row: Row, state: str, case: Case) -> None:
    """Bring an exec of its own into the state, make the call, and see what comes."""
    exec_id = f"exec-{row.name}-{state}".lower().replace(" ", "-")
    reach = EXEC_STATES[state]
    if reach is not None:
        await reach(case.container, exec_id)
    fields = {**row.fields, "exec_id": exec_id}
    if row.method == "Exec":
        fields |= _process(case)
    await _expect(case.container, row, state, fields)
    if state in row.fatal:
        await case.container.shim.kill()


def _process(case: Case) -> dict[str, Any]:
    document = container.process(case.subject.command(EXIT(0)), case.namespace)
    return {"spec": container.process_any(document)}


async def _expect(task: Task, row: Row, state: str, fields: Mapping[str, Any]) -> None:
    expected = row.expected[state]
    if isinstance(expected, str):
        await _pending(task, row.method, fields)
    else:
        known = row.known if not row.known_in or state in row.known_in else {}
        await task.refused(row.method, *expected, known=known, **fields)


async def _pending(task: Task, method: str, fields: Mapping[str, Any]) -> None:
    waiting = asyncio.ensure_future(task.call(method, timeout=CALL_SECONDS, **fields))
    done, _ = await asyncio.wait([waiting], timeout=_PENDING_SECONDS)
    waiting.cancel()
    await asyncio.wait([waiting])
    if done:
        raise Failed(f"{method}({dict(fields)})", "no answer for now", task.case.calls[-1])


def _add(
    theme: str,
    rows: tuple[Row, ...],
    scenes: Mapping[str, Play],
    call: Callable[[Row, str, Case], Awaitable[None]],
) -> None:
    for row in rows:
        for state in row.expected:
            CHECKS.append(
                Check(
                    theme,
                    f"{state}: {row.name}",
                    partial(call, row, state),
                    about=row.method if row.method in OPTIONAL else "",
                    scene=scenes[state],
                    spoils=state in row.spoils,
                    place=(row.name, state),
                )
            )


_add("container by state", TASK_ROWS, TASK_STATES, _call)
_add("exec by state", EXEC_ROWS, dict.fromkeys(EXEC_STATES, running), _call_exec)
