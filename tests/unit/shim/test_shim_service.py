"""The task service around an author's container: states, refusals, events."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness.leaks import descriptors
from shim_puppet import Early, Puppet, Shim, serving

from taskd.codec import encode
from taskd.errors import (
    AlreadyExists,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TaskdError,
    Unimplemented,
    Unknown,
)
from taskd.proto.containerd import events
from taskd.proto.containerd.runc.v1 import ProcessDetails
from taskd.proto.containerd.task import v3 as api
from taskd.proto.containerd.v1.types import Status
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.shim import Container, Ended, Process, Stdio


async def refused(call: object) -> tuple[Code, str]:
    """Code and words of a call that fails."""
    with pytest.raises(TaskdError) as caught:
        await call  # type: ignore[misc]
    # The client adds the kind, as containerd's does.
    return caught.value.code, caught.value.message.removesuffix(": unknown")


JSON = AnyMessage(value=b"{}")
NOT_CREATED = (Code.NOT_FOUND, "container not created: not found")


@pytest.mark.parametrize("version", [2, 3])
async def test_a_life(shim: Shim, version: int) -> None:
    created = await shim.call("Create", version=version, stdout="", terminal=False)
    assert created.pid == 0
    state = await shim.call("State", version=version)
    assert (state.id, state.bundle, state.status) == ("one", str(shim.bundle), Status.CREATED)
    pid = (await shim.call("Start", version=version)).pid
    assert (await shim.call("State", version=version)).status == Status.RUNNING
    connected = await shim.call("Connect", version=version)
    assert (connected.shim_pid, connected.task_pid) == (os.getpid(), pid)
    await shim.end(pid, 42)
    for answer in (
        await shim.call("State", version=version),
        await shim.call("Wait", version=version),
        await shim.call("Delete", version=version),
    ):
        exited = answer.exited_at
        assert (answer.exit_status, exited.seconds, exited.nanos) == (42, 1_700_000_000, 7)
    assert shim.told == ["Create", "Start", "Exit one", "Delete"]
    assert Puppet.calls == [("start",), ("ended",), ("delete",)]
    assert await refused(shim.call("State")) == (
        Code.NOT_FOUND,
        "container not created: not found",
    )


async def test_what_events_say(shim: Shim) -> None:
    pid = await shim.start()
    await shim.end(pid, 3)
    await shim.call("Delete")
    create, start, end, delete = shim.events
    assert isinstance(create, events.TaskCreate)
    assert (create.container_id, create.bundle, create.pid) == ("one", str(shim.bundle), 0)
    assert start == events.TaskStart(container_id="one", pid=pid)
    assert isinstance(end, events.TaskExit)
    assert isinstance(delete, events.TaskDelete)
    assert end.exited_at == delete.exited_at
    assert (end.container_id, end.id, end.pid, end.exit_status) == ("one", "one", pid, 3)
    assert (delete.container_id, delete.pid, delete.exit_status) == ("one", pid, 3)


async def test_a_process_that_is_there_when_it_is_created(tmp_path: Path) -> None:
    async with serving(Early, tmp_path) as shim:
        pid = (await shim.call("Create")).pid
        assert pid
        assert (tmp_path / "init.pid").read_text() == str(pid)
        assert (await shim.call("Start")).pid == pid
        await shim.end(pid)
        assert shim.told == ["Create", "Start", "Exit one"]


async def test_one_that_ends_before_it_is_started(tmp_path: Path) -> None:
    async with serving(Early, tmp_path) as shim:
        pid = (await shim.call("Create")).pid
        await shim.end(pid, 137)
        assert await refused(shim.call("Start")) == (
            Code.UNKNOWN,
            "cannot start a stopped process",
        )
        assert (await shim.call("Delete")).exit_status == 137
        assert shim.told == ["Create", "Exit one", "Delete"]


class Ending(Early):
    """What has a process ends with its container, a little later."""

    async def delete(self) -> None:
        self._note("delete")
        for end in self.ends.values():
            asyncio.get_running_loop().call_later(0.05, end.set_result, Ended(137, 1))


async def test_the_end_of_one_that_is_deleted_instead_of_started_is_told_first(
    tmp_path: Path,
) -> None:
    async with serving(Ending, tmp_path) as shim:
        await shim.call("Create")
        await shim.call("Delete")
        assert shim.told == ["Create", "Exit one", "Delete"]


async def prepare(shim: Shim, state: str) -> None:
    if state == "none":
        return
    await shim.call("Create")
    if state == "created":
        return
    pid = (await shim.call("Start")).pid
    if state == "paused":
        await shim.call("Pause")
    if state == "stopped":
        await shim.end(pid)


# Source: containerd's pkg/process/init_state.go and runtime/v2/runc/task/service.go, v1.7.24.
@pytest.mark.parametrize(
    ("state", "method", "words"),
    [
        ("created", "Pause", "cannot pause task in created state"),
        ("created", "Resume", "cannot resume task in created state"),
        ("created", "Checkpoint", "cannot checkpoint a task in created state"),
        ("running", "Start", "cannot start a running process"),
        ("running", "Resume", "cannot resume a running process"),
        ("running", "Delete", "cannot delete a running process"),
        ("paused", "Start", "cannot start a paused process"),
        ("paused", "Pause", "cannot pause a paused container"),
        ("paused", "Delete", "cannot delete a paused process"),
        ("paused", "Exec", "cannot exec in a paused state"),
        ("stopped", "Start", "cannot start a stopped process"),
        ("stopped", "Pause", "cannot pause a stopped container"),
        ("stopped", "Resume", "cannot resume a stopped container"),
        ("stopped", "Update", "cannot update a stopped container"),
        ("stopped", "Checkpoint", "cannot checkpoint a stopped container"),
        ("stopped", "Exec", "cannot exec in a stopped state"),
    ],
)
async def test_what_is_refused(shim: Shim, state: str, method: str, words: str) -> None:
    await prepare(shim, state)
    before = list(Puppet.calls), list(shim.told), (await shim.call("State")).status
    fields = {"Exec": {"exec_id": "two", "spec": JSON}, "Update": {"resources": JSON}}
    assert await refused(shim.call(method, **fields.get(method, {}))) == (Code.UNKNOWN, words)
    assert before == (Puppet.calls, shim.told, (await shim.call("State")).status)


@pytest.mark.parametrize(
    "method",
    [
        "Start",
        "Delete",
        "Exec",
        "ResizePty",
        "State",
        "Pause",
        "Resume",
        "Kill",
        "Pids",
        "CloseIO",
        "Checkpoint",
        "Update",
        "Wait",
        "Stats",
    ],
)
async def test_without_a_container(shim: Shim, method: str) -> None:
    assert await refused(shim.call(method)) == NOT_CREATED


@pytest.mark.parametrize("method", ["Start", "Delete", "State", "Kill", "Wait", "CloseIO"])
async def test_without_an_exec(shim: Shim, method: str) -> None:
    await shim.start()
    expected = (Code.NOT_FOUND, "process does not exist two: not found")
    assert await refused(shim.call(method, exec_id="two")) == expected


async def test_what_an_author_leaves_out(tmp_path: Path) -> None:
    class Least(Container):
        pass

    async with serving(Least, tmp_path) as shim:
        await shim.call("Create")
        for method in ("start", "exec", "pids", "stats", "update"):
            fields = {"exec": {"exec_id": "two", "spec": JSON}, "update": {"resources": JSON}}
            expected = (Code.UNIMPLEMENTED, f"{method}: not implemented")
            call = shim.call(method.title(), **fields.get(method, {}))
            assert await refused(call) == expected
        assert await refused(shim.call("Kill", signal=9)) == (
            Code.FAILED_PRECONDITION,
            "process not created: failed precondition",
        )
        await shim.call("Delete")
        assert shim.told == ["Create", "Delete"]

    class Runs(Least):
        async def start(self, init: Process) -> int:
            return 4_100_000_000

        def end(self, pid: int) -> asyncio.Future[Ended]:
            return asyncio.get_running_loop().create_future()

    async with serving(Runs, tmp_path) as shim:
        await shim.start()
        for method in ("pause", "checkpoint"):
            expected = (Code.UNIMPLEMENTED, f"{method}: not implemented")
            assert await refused(shim.call(method.title())) == expected
        assert (await shim.call("State")).status == Status.RUNNING
        assert shim.told == ["Create", "Start"]


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (NotFound("module x"), Code.NOT_FOUND, "module x: not found"),
        (InvalidArgument("args"), Code.INVALID_ARGUMENT, "args: invalid argument"),
        (FailedPrecondition("no"), Code.FAILED_PRECONDITION, "no: failed precondition"),
        (Unimplemented("half"), Code.UNIMPLEMENTED, "half: not implemented"),
        (Unknown("no room"), Code.UNKNOWN, "no room"),
        (ValueError("odd"), Code.UNKNOWN, "odd"),
    ],
)
async def test_what_a_method_raises(shim: Shim, raised: Exception, code: Code, words: str) -> None:
    await shim.call("Create")
    Puppet.fail["start"] = raised
    assert await refused(shim.call("Start")) == (code, words)
    assert (await shim.call("State")).status == Status.CREATED
    assert shim.told == ["Create"]
    Puppet.fail.clear()
    assert (await shim.call("Start")).pid  # it can be tried again


async def test_execs(shim: Shim) -> None:
    init = await shim.start()
    await shim.exec(start=False)
    state = await shim.call("State", exec_id="two")
    assert (state.id, state.pid, state.status) == ("two", 0, Status.CREATED)
    two = (await shim.call("Start", exec_id="two")).pid
    expected = (Code.UNKNOWN, "cannot start a running process")
    assert await refused(shim.call("Start", exec_id="two")) == expected
    expected = (Code.UNKNOWN, "cannot delete a running process")
    assert await refused(shim.call("Delete", exec_id="two")) == expected
    await shim.call("Kill", exec_id="two", signal=15)
    assert ("kill", "two", 15, False) in Puppet.calls
    processes = (await shim.call("Pids")).processes
    assert [process.pid for process in processes] == [init, two]
    assert processes[0].info is None
    assert processes[1].info.type_url == "containerd.runc.v1.ProcessDetails"
    assert ProcessDetails.parse(processes[1].info.value).exec_id == "two"
    await shim.end(two, 5, exec_id="two")
    expected = (Code.UNKNOWN, "cannot start a stopped process")
    assert await refused(shim.call("Start", exec_id="two")) == expected
    expected = (Code.UNKNOWN, "cannot resize a stopped container")
    assert await refused(shim.call("ResizePty", exec_id="two")) == expected
    deleted = await shim.call("Delete", exec_id="two")
    assert (deleted.pid, deleted.exit_status) == (two, 5)
    assert shim.told == ["Create", "Start", "ExecAdded two", "ExecStarted two", "Exit two"]
    assert (await shim.call("State")).status == Status.RUNNING


async def test_ids_that_are_taken(shim: Shim) -> None:
    await shim.start()
    expected = (AlreadyExists.code, "container one: already exists")
    assert await refused(shim.call("Create")) == expected
    await shim.exec()
    expected = (AlreadyExists.code, "id two: already exists")
    assert await refused(shim.call("Exec", exec_id="two", spec=JSON)) == expected
    expected = (Code.UNKNOWN, "the process's specification is not a JSON object: list")
    listed = AnyMessage(value=b"[]")
    assert await refused(shim.call("Exec", exec_id="three", spec=listed)) == expected
    assert (await shim.call("State", exec_id="two")).status == Status.RUNNING


async def test_a_containers_exit_is_told_after_those_of_its_execs(shim: Shim) -> None:
    init = await shim.start()
    two, three = await shim.exec("two"), await shim.exec("three")
    ending = asyncio.create_task(shim.end(init, 1))
    await asyncio.sleep(0.05)
    assert ("ended",) in Puppet.calls
    assert (await shim.call("State")).status == Status.RUNNING
    await shim.exec("four", start=False)
    expected = (
        Code.FAILED_PRECONDITION,
        "container one init process is not running: failed precondition",
    )
    assert await refused(shim.call("Start", exec_id="four")) == expected
    await shim.end(three, 3, exec_id="three")
    assert not ending.done()
    await shim.end(two, 2, exec_id="two")
    await ending
    assert shim.told[-3:] == ["Exit three", "Exit two", "Exit one"]


async def test_an_exec_that_does_not_start(shim: Shim) -> None:
    init = await shim.start()
    Puppet.fail["exec"] = Unknown("no such program")
    waiting: asyncio.Task[object] | None = None
    await shim.exec(start=False)
    waiting = asyncio.create_task(shim.call("Wait", exec_id="two"))
    assert await refused(shim.call("Start", exec_id="two")) == (Code.UNKNOWN, "no such program")
    await waiting
    await shim.call("Delete", exec_id="two")
    await shim.end(init)  # is not held back
    assert shim.told == ["Create", "Start", "ExecAdded two", "Exit one"]


async def test_pause_and_resume(shim: Shim) -> None:
    await shim.start()
    await shim.exec()
    await shim.call("Pause")
    for exec_id in ("", "two"):
        assert (await shim.call("State", exec_id=exec_id)).status == Status.PAUSED
    await shim.call("Resume")
    assert (await shim.call("State", exec_id="two")).status == Status.RUNNING
    Puppet.fail["pause"] = Unknown("cannot")
    assert await refused(shim.call("Pause")) == (Code.UNKNOWN, "cannot")
    assert (await shim.call("State")).status == Status.RUNNING
    assert shim.told[-2:] == ["Paused", "Resumed"]


async def test_a_paused_container_whose_process_ends(shim: Shim) -> None:
    pid = await shim.start()
    await shim.call("Pause")
    await shim.end(pid, 137)
    assert Puppet.calls[-1] == ("resume",)
    assert (await shim.call("State")).status == Status.STOPPED
    await shim.call("Delete")


async def test_update_and_checkpoint(shim: Shim) -> None:
    await shim.start()
    resources = AnyMessage(value=json.dumps({"pids": {"limit": 7}}).encode())
    await shim.call("Update", resources=resources, annotations={"a": "b"})
    await shim.call("Checkpoint", path="/somewhere")
    assert Puppet.calls[1:] == [
        ("update", {"pids": {"limit": 7}}, {"a": "b"}),
        ("checkpoint", "/somewhere"),
    ]
    for resources in (AnyMessage(value=b"[]"), AnyMessage(value=b"1")):
        code, words = await refused(shim.call("Update", resources=resources))
        assert (code, words[:33]) == (Code.UNKNOWN, "the resources are no JSON object:")
    for resources in (AnyMessage(value=b"{"), None):
        code, words = await refused(shim.call("Update", resources=resources))
        assert code is Code.UNKNOWN
        assert words.startswith("the resources are not JSON: ")
    code, words = await refused(shim.call("Exec", exec_id="two", spec=AnyMessage(value=b"{")))
    assert (code, words[:42]) == (Code.UNKNOWN, "the process's specification is not JSON: E")


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        ('{"memory": null}', {}),
        ('{"memory": {"limit": null, "swap": 1}, "pids": null}', {"memory": {"swap": 1}}),
        ('{"devices": [{"major": null, "allow": false}]}', {"devices": [{"allow": False}]}),
        (
            '{"cpu": {"quota": 0}, "unified": {"a": ""}}',
            {"cpu": {"quota": 0}, "unified": {"a": ""}},
        ),
        ("null", {}),
    ],
)
async def test_what_is_null_is_not_there(shim: Shim, sent: str, heard: object) -> None:
    await shim.start()
    await shim.call("Update", resources=AnyMessage(value=sent.encode()))
    assert Puppet.calls[-1] == ("update", heard, {})


@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("exec_id", ["", "two"])
async def test_an_author_is_not_asked_to_kill_nobody(
    shim: Shim, exec_id: str, everyone: bool
) -> None:
    """`os.kill(0, …)` would hit the shim's own group, and another process may have got the pid."""
    await shim.call("Create")
    kill = {"exec_id": exec_id, "signal": 9, "all": everyone}
    if exec_id:
        await shim.call("Start")
        await shim.exec(exec_id, start=False)
    expected = (Code.FAILED_PRECONDITION, "process not created: failed precondition")
    assert await refused(shim.call("Kill", **kill)) == expected
    pid = (await shim.call("Start", exec_id=exec_id)).pid
    await shim.call("Kill", **kill)
    assert Puppet.calls[-1] == ("kill", exec_id, 9, everyone)
    await shim.end(pid, exec_id=exec_id)
    before = list(Puppet.calls)
    if everyone and not exec_id:
        await shim.call("Kill", **kill)  # nobody is left
    else:
        expected = (Code.NOT_FOUND, "process already finished: not found")
        assert await refused(shim.call("Kill", **kill)) == expected
    assert Puppet.calls == before


async def test_a_create_that_fails(tmp_path: Path) -> None:
    async with serving(Early, tmp_path) as shim:
        Puppet.fail["create"] = Unknown("no room")
        os.mkfifo(tmp_path / "out")
        before = descriptors(os.getpid())
        call = shim.call("Create", stdout=str(tmp_path / "out"))
        assert await refused(call) == (Code.UNKNOWN, "no room")
        assert descriptors(os.getpid()) == before
        assert (Puppet.calls, shim.told) == ([("create",), ("abandon",)], [])
        Puppet.fail.clear()
        await shim.call("Create")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "is not JSON: "),
        (b"{", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[" * 100_000, "is not JSON: "),
        (b"[]", "is not a JSON object: list"),
        (b"null", "is not a JSON object: NoneType"),
    ],
    ids=lambda given: str(given)[:20],
)
async def test_a_specification_that_is_none(
    shim: Shim, text: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    (shim.bundle / "config.json").write_bytes(text)
    code, words = await refused(shim.call("Create"))
    assert code is Code.UNKNOWN
    assert words.startswith(f"the specification {why}")
    assert "Traceback" not in caplog.text


async def test_a_create_whose_client_goes_away(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Puppet):
        async def create(self, init: Process) -> int:
            begun.set()
            await go_on.wait()
            return 0

    async with serving(Slow, tmp_path) as shim:
        creating = asyncio.create_task(shim.call("Create"))
        await begun.wait()
        await shim.call("Shutdown")
        await shim.client.aclose()
        with pytest.raises(TaskdError):
            await creating
        assert not shim.service.tenants.stopped.is_set()
        go_on.set()
        async with asyncio.timeout(5):
            await shim.service.tenants.stopped.wait()
        assert Puppet.calls == [("delete",)]
        assert shim.told == ["Create", "Delete"]


class Held(Puppet):
    """Is not created before `go_on` is set."""

    begun: ClassVar[asyncio.Event]
    go_on: ClassVar[asyncio.Event]

    async def create(self, init: Process) -> int:
        self.begun.set()
        await self.go_on.wait()
        self._note("create")
        return 0


@asynccontextmanager
async def creating(folder: Path) -> AsyncIterator[tuple[Shim, asyncio.Task[Any]]]:
    """A shim that is making a container, and the call for that."""
    Held.begun, Held.go_on = asyncio.Event(), asyncio.Event()
    async with serving(Held, folder) as shim:
        making = asyncio.create_task(shim.call("Create"))
        await Held.begun.wait()
        yield shim, making
        await asyncio.gather(making, return_exceptions=True)
        # Nothing is left: it ends as soon as it is to.
        await shim.call("Shutdown")
        assert shim.service.tenants.stopped.is_set()


async def test_what_is_being_created_is_deleted_once_it_is_there(tmp_path: Path) -> None:
    async with creating(tmp_path) as (shim, making):
        deleting = asyncio.create_task(shim.call("Delete"))
        assert await refused(shim.call("Delete", exec_id="two")) == NOT_CREATED
        assert not deleting.done()
        Held.go_on.set()
        await deleting
        await making
        assert shim.told == ["Create", "Delete"]
        assert await refused(shim.call("State")) == NOT_CREATED
        await shim.call("Create")
        await shim.call("Delete")


async def test_a_delete_that_gives_up_waiting_for_the_creation(tmp_path: Path) -> None:
    """A daemon that has stopped waiting takes it for gone."""
    async with creating(tmp_path) as (shim, making):
        request = encode(api.DeleteRequest(id="one"))
        with pytest.raises(DeadlineExceeded):
            await shim.client.call("containerd.task.v3.Task", "Delete", request, timeout=0.05)
        await shim.call("Shutdown")
        Held.go_on.set()
        await making
        async with asyncio.timeout(60):
            await shim.service.tenants.stopped.wait()
        assert shim.told == ["Create", "Delete"]


async def test_a_delete_of_what_cannot_be_created(tmp_path: Path) -> None:
    async with creating(tmp_path) as (shim, making):
        deleting = asyncio.create_task(shim.call("Delete"))
        await refused(shim.call("Delete", exec_id="two"))  # the other one was heard before
        Puppet.fail["create"] = Unknown("no")
        Held.go_on.set()
        assert await refused(making) == (Code.UNKNOWN, "no")
        assert await refused(deleting) == NOT_CREATED


async def test_a_creation_that_took_too_long_is_deleted_by_either(tmp_path: Path) -> None:
    """By its own deadline, or by the delete that waits; each is told of once."""
    async with creating(tmp_path) as (shim, making):
        making.cancel()
        request = encode(api.CreateTaskRequest(id="two", bundle=str(tmp_path)))
        with pytest.raises(DeadlineExceeded):
            await shim.client.call("containerd.task.v3.Task", "Create", request, timeout=0.05)
        deletes = [asyncio.create_task(shim.call("Delete", id=name)) for name in ("one", "two")]
        await refused(shim.call("Delete", exec_id="two"))
        Held.go_on.set()
        first, second = await asyncio.gather(*deletes, return_exceptions=True)
        assert isinstance(first, api.DeleteResponse)
        # The shim has the same deadline as its client, and may come to it after `go_on`.
        assert isinstance(second, NotFound | api.DeleteResponse)
        assert sorted(shim.told) == ["Create", "Create", "Delete", "Delete"]


async def test_what_cannot_be_deleted_goes_with_its_bundle(shim: Shim) -> None:
    await shim.call("Create")
    Puppet.fail["delete"] = Unknown("no log.json")
    shutil.rmtree(shim.bundle)
    await shim.call("Delete")
    await shim.call("Shutdown")
    assert shim.service.tenants.stopped.is_set()


async def test_it_ends_when_it_is_told_to_and_the_last_container_has_gone(shim: Shim) -> None:
    (shim.bundle / "two").mkdir()
    (shim.bundle / "two/config.json").write_text("{}")
    await shim.call("Create")
    await shim.call("Create", id="two", bundle=str(shim.bundle / "two"))
    await shim.call("Shutdown")
    await shim.call("Delete")
    assert not shim.service.tenants.stopped.is_set()
    await shim.call("Delete", id="two")
    await shim.call("Shutdown", id="two")
    assert shim.service.tenants.stopped.is_set()


async def test_a_delete_that_fails_can_be_tried_again(shim: Shim) -> None:
    pid = await shim.start()
    await shim.end(pid, 1)
    Puppet.fail["delete"] = Unknown("busy")
    assert await refused(shim.call("Delete")) == (Code.UNKNOWN, "busy")
    Puppet.fail.clear()
    assert (await shim.call("Delete")).exit_status == 1
    assert shim.told == ["Create", "Start", "Exit one", "Delete"]


async def test_what_a_process_is_to_run() -> None:
    spec = {"args": ["a", "b"], "env": ["A=B=C", "D", "E="], "cwd": "/tmp"}
    process = Process("", spec, Stdio())
    assert process.args == ["a", "b"]
    assert process.env == {"A": "B=C", "D": "", "E": ""}
    assert process.cwd == "/tmp"
    empty = Process("", {}, Stdio())
    assert (empty.env, empty.cwd) == ({}, "/")
    with pytest.raises(InvalidArgument, match="args must not be empty"):
        _ = empty.args
