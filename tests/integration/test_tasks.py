"""The task service with real shims and real runc: what is refused, what is lost, what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.client import RUNC, Client, shim_pid
from harness.containers import hungry, process, spec
from harness.daemons import Taskd, client
from harness.leaks import descriptors, traces
from harness.pace import SLOWER
from harness.real import BOTH_SHIMS, MORTAL
from harness.shell import COMMAND

from taskd.events import Envelope
from taskd.proto.containerd.events import TaskDelete, TaskExit, TaskOom
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.events.v1 import SubscribeRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    CloseIoRequest,
    CreateTaskRequest,
    DeleteProcessRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    ListTasksRequest,
    MetricsRequest,
    StartRequest,
    UpdateTaskRequest,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.proto.taskd.v1 import JournalStub, ReadRequest
from taskd.wellknown import unpack

pytestmark = [pytest.mark.usefixtures("clean"), BOTH_SHIMS]


@pytest.fixture
async def ask(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)


class Refusal:
    """``with Refusal(status, words):`` what is within must be refused so."""

    def __init__(self, status: Status, words: str) -> None:
        self.status = status
        self.words = words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        assert isinstance(exc, GRPCError), exc
        assert exc.status is self.status, exc
        assert self.words in (exc.message or "")
        return True


async def test_every_method_refuses_what_is_not_there(ask: Client, namespace: str) -> None:
    tasks = ask.tasks
    requests = {
        tasks.create: CreateTaskRequest(container_id="none"),
        tasks.start: StartRequest(container_id="none"),
        tasks.delete: DeleteTaskRequest(container_id="none"),
        tasks.delete_process: DeleteProcessRequest(container_id="none", exec_id="x"),
        tasks.get: GetRequest(container_id="none"),
        tasks.kill: KillRequest(container_id="none", signal=9),
        tasks.exec: ExecProcessRequest(container_id="none", exec_id="x"),
        tasks.close_io: CloseIoRequest(container_id="none", stdin=True),
        tasks.list_pids: ListPidsRequest(container_id="none"),
        tasks.checkpoint: CheckpointTaskRequest(container_id="none"),
        tasks.update: UpdateTaskRequest(container_id="none"),
        tasks.wait: WaitRequest(container_id="none"),
    }
    for method, request in requests.items():
        with Refusal(Status.NOT_FOUND, f'container "none" in namespace "{namespace}": not found'):
            await method(request)  # type: ignore[operator]
    await ask.container("none", "/bin/true")
    for method, request in requests.items():
        if method != tasks.create:
            with Refusal(Status.NOT_FOUND, "task none not found"):
                await method(request)  # type: ignore[operator]
    await ask.containers.delete(DeleteContainerRequest(id="none"))


async def test_a_create_that_is_refused_leaves_others_containers_alone(
    ask: Client, folder: Path, rootfs: Path, namespace: str
) -> None:
    """One of that id is in the runtime's state already, which another daemon may have made."""
    bundle = folder / "theirs"
    bundle.mkdir()
    (bundle / "config.json").write_bytes(spec(rootfs, ["sleep", "1000"]).value)
    runc = ["runc", "--root", f"/run/containerd/runc/{namespace}"]
    detached = ["run", "--detach", "--bundle", str(bundle), "one"]
    subprocess.run([*runc, *detached], stdin=subprocess.DEVNULL, check=True)
    try:
        await ask.container("one", "/bin/true")
        for _ in range(2):
            with Refusal(Status.UNKNOWN, "already exists"):
                await ask.tasks.create(CreateTaskRequest(container_id="one"))
        done = subprocess.run([*runc, "state", "one"], capture_output=True, check=True)
        found = json.loads(done.stdout)
        assert (found["status"], found["bundle"]) == ("running", str(bundle))
        assert not (await ask.tasks.list(ListTasksRequest())).tasks
    finally:
        subprocess.run([*runc, "delete", "--force", "one"], check=True)
    created = await ask.tasks.create(CreateTaskRequest(container_id="one"))
    assert created.pid
    await ask.tasks.delete(DeleteTaskRequest(container_id="one"))


async def test_states_and_refusals_of_a_running_task(ask: Client) -> None:
    await ask.container("one", "/bin/sleep", "1000")
    created = await ask.tasks.create(CreateTaskRequest(container_id="one"))
    state = (await ask.tasks.get(GetRequest(container_id="one"))).process
    assert state is not None
    assert (state.pid, state.status.name) == (created.pid, "CREATED")
    with Refusal(Status.ALREADY_EXISTS, "task one: already exists"):
        await ask.tasks.create(CreateTaskRequest(container_id="one"))
    assert (await ask.tasks.start(StartRequest(container_id="one"))).pid == created.pid
    # The shim's own answer: UNKNOWN from 1.6's, FAILED_PRECONDITION from later ones.
    with pytest.raises(GRPCError, match="cannot delete a running process"):
        await ask.tasks.delete(DeleteTaskRequest(container_id="one"))
    with Refusal(Status.INVALID_ARGUMENT, "exec id cannot be empty"):
        await ask.tasks.exec(ExecProcessRequest(container_id="one"))
    with Refusal(Status.INVALID_ARGUMENT, "invalid exec id ../x: identifier"):
        await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id="../x"))
    with Refusal(Status.NOT_FOUND, "not found"):
        await ask.tasks.get(GetRequest(container_id="one", exec_id="nobody"))
    assert await ask.end("one") == 137


async def test_the_shims_log_goes_into_the_daemons(
    ask: Client, daemon: Taskd, namespace: str
) -> None:
    await ask.start("one", "/bin/true")
    await ask.end("one")
    # The Go shim's words, or ours, which may have been there for more than one.
    words = rf"shim {namespace}/(one: .*starting signal loop|(one|pool-\w+): INFO serving \2)"
    assert re.search(words, daemon.log.read_text())


async def test_execs(ask: Client) -> None:
    await ask.start("one", "/bin/sleep", "1000")
    request = ExecProcessRequest(
        container_id="one", exec_id="two", spec=process(["/bin/sh", "-c", "exit 7"])
    )
    await ask.tasks.exec(request)
    with Refusal(Status.ALREADY_EXISTS, "two"):
        await ask.tasks.exec(request)
    pid = (await ask.tasks.start(StartRequest(container_id="one", exec_id="two"))).pid
    waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
    assert waited.exit_status == 7
    found = await ask.tasks.delete_process(DeleteProcessRequest(container_id="one", exec_id="two"))
    assert (found.id, found.pid, found.exit_status) == ("two", pid, 7)
    assert found.exited_at == waited.exited_at
    with Refusal(Status.NOT_FOUND, "not found"):
        await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
    await ask.end("one")


async def test_update_and_metrics(ask: Client) -> None:
    await ask.start("one", "/bin/sleep", "1000")
    resources = Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=b'{"memory": {"limit": 67108864}}',
    )
    await ask.tasks.update(UpdateTaskRequest(container_id="one", resources=resources))
    answer = await ask.tasks.metrics(MetricsRequest(filters=["id==one", "id==two"]))
    assert [metric.id for metric in answer.metrics] == ["one"]
    assert answer.metrics[0].data is not None
    version = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    assert answer.metrics[0].data.type_url.endswith(f"cgroups.v{version}.Metrics")
    assert (await ask.tasks.metrics(MetricsRequest(filters=["id==two"]))).metrics == []
    await ask.end("one")


async def test_memory_that_runs_out_is_told(ask: Client) -> None:
    told: list[str] = []

    async def listen() -> None:
        wanted = SubscribeRequest(filters=['topic=="/tasks/oom"'])
        async for envelope in ask.events.subscribe(wanted):
            assert envelope.event is not None
            told.append(TaskOom.parse(envelope.event.value).container_id)

    runtime = ContainerRuntime(name=RUNC)
    container = Container(id="one", runtime=runtime, spec=hungry(ask.rootfs))
    await ask.containers.create(CreateContainerRequest(container=container))
    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await ask.tasks.create(CreateTaskRequest(container_id="one"))
        await ask.tasks.start(StartRequest(container_id="one"))
        with anyio.fail_after(30):
            while not told:
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert set(told) == {"one"}
    await ask.end("one")


async def test_a_thousand_waiters_cost_one_call(ask: Client, daemon: Taskd) -> None:
    await ask.start("one", "/bin/sleep", "1000")
    statuses: list[int] = []

    async def wait() -> None:
        answer = await ask.tasks.wait(WaitRequest(container_id="one"))
        statuses.append(answer.exit_status)

    async with anyio.create_task_group() as group:
        for _ in range(1000):
            group.start_soon(wait)
        await anyio.sleep(0.5)
        await ask.tasks.kill(KillRequest(container_id="one", signal=9))
    assert statuses == [137] * 1000
    await ask.remove("one")


async def exits(ask: Client, found: list[TaskExit], *, task_status: object = None) -> None:
    stream = ask.events.subscribe(SubscribeRequest(filters=['topic=="/tasks/exit"']))
    async for envelope in stream:
        assert envelope.event is not None
        found.append(TaskExit.parse(envelope.event.value))


@MORTAL
async def test_a_killed_shim_is_an_exit_that_everybody_hears_of(
    ask: Client, namespace: str
) -> None:
    pid = await ask.start("one", "/bin/sleep", "1000")
    heard: list[TaskExit] = []
    async with anyio.create_task_group() as group:
        group.start_soon(exits, ask, heard)
        waited: list[int] = []

        async def wait() -> None:
            waited.append((await ask.tasks.wait(WaitRequest(container_id="one"))).exit_status)

        group.start_soon(wait)
        await anyio.sleep(0.3)
        os.kill(shim_pid(namespace, "one"), signal.SIGKILL)
        with anyio.fail_after(20):
            while not (heard and waited):
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert [(event.container_id, event.pid) for event in heard] == [("one", pid)]
    assert waited == [heard[0].exit_status] == [137]
    assert (await ask.tasks.list(ListTasksRequest())).tasks == []
    await ask.containers.delete(DeleteContainerRequest(id="one"))


@MORTAL
async def test_a_deletion_that_nobody_waits_for_is_done(
    ask: Client, daemon: Taskd, namespace: str
) -> None:
    """Docker's engine asks for one as it goes away itself."""
    await ask.start("one", "/bin/true")
    await ask.tasks.wait(WaitRequest(container_id="one"))
    shim = shim_pid(namespace, "one")
    os.kill(shim, signal.SIGSTOP)
    try:
        with anyio.move_on_after(SLOWER) as asking:
            await ask.tasks.delete(DeleteTaskRequest(container_id="one"))
        assert asking.cancelled_caught
    finally:
        os.kill(shim, signal.SIGCONT)
    with anyio.fail_after(20):
        while (await ask.tasks.list(ListTasksRequest())).tasks:
            await anyio.sleep(0.05)
    await ask.containers.delete(DeleteContainerRequest(id="one"))


@MORTAL
async def test_an_exec_with_the_id_of_its_container_is_not_taken_for_it(
    ask: Client, namespace: str
) -> None:
    pid = await ask.start("one", "/bin/sleep", "1000")
    for name in ("two", "one"):
        spec = process(["/bin/sh", "-c", "exit 7"])
        await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id=name, spec=spec))
        await ask.tasks.start(StartRequest(container_id="one", exec_id=name))
        waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id=name))
        assert waited.exit_status == 7
    os.kill(shim_pid(namespace, "one"), signal.SIGKILL)
    exits, deleted = [], []
    mine = ReadRequest(after=0, follow=True, filters=[f"namespace=={namespace}"])
    with anyio.fail_after(20):
        async for entry in JournalStub(ask.channel).read(mine):
            envelope = Envelope.from_message(entry.envelope)
            match unpack(envelope.event) if envelope.event else None:
                case TaskExit() as event:
                    exits.append((event.id, event.exit_status, event.pid == pid))
                case TaskDelete() as event:
                    deleted.append((event.exit_status, event.pid == pid))
                    break
    await ask.containers.delete(DeleteContainerRequest(id="one"))
    assert exits == [("two", 7, False), ("one", 7, False), ("one", 137, True)]
    assert deleted == [(137, True)]


@MORTAL
async def test_a_hung_shim_delays_nobody_else(ask: Client, namespace: str) -> None:
    await ask.start("hung", "/bin/sleep", "1000")
    await ask.start("well", "/bin/sleep", "1000")
    shim = shim_pid(namespace, "hung")
    os.kill(shim, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        await ask.tasks.get(GetRequest(container_id="well"))
        assert time.monotonic() - begin < SLOWER
        listed = (await ask.tasks.list(ListTasksRequest())).tasks
        states = {process.id: process.status.name for process in listed}
        assert states == {"hung": "UNKNOWN", "well": "RUNNING"}
        metrics = (await ask.tasks.metrics(MetricsRequest())).metrics
        assert [metric.id for metric in metrics] == ["well"]
        assert await ask.end("well") == 137
    finally:
        os.kill(shim, signal.SIGCONT)
    assert await ask.end("hung") == 137


def write_shim(folder: Path, script: str) -> Path:
    path = folder / "containerd-shim-broken-v1"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no luck today' >&2; exit 1", "no luck today"),
        ("exit 0", "the shim printed no address"),
        ("echo unix:///nowhere/at/all", "/nowhere/at/all"),
        ('echo \'{"version": 9, "address": "x", "protocol": "ttrpc"}\'', "version (9)"),
        ('echo \'{"version": 3, "address": "x", "protocol": "smoke"}\'', '"smoke"'),
        ("sleep 1000 & echo unix:///nowhere; echo $! >> $0.pid", "/nowhere"),
    ],
)
async def test_a_shim_that_does_not_start_tells_why_and_leaves_nothing(
    ask: Client, folder: Path, script: str, words: str
) -> None:
    shim = write_shim(folder, script)
    await ask.container("one", "/bin/true", runtime=str(shim))
    with pytest.raises(GRPCError, match="failed to start shim") as caught:
        await ask.tasks.create(CreateTaskRequest(container_id="one"))
    assert words in (caught.value.message or "")
    await ask.containers.delete(DeleteContainerRequest(id="one"))
    left = Path(f"{shim}.pid")
    if left.exists():
        # It may have been started more than once.
        for pid in left.read_text().split():
            stat = Path(f"/proc/{pid}/stat")
            # What has been killed has some way to go yet.
            with anyio.fail_after(10):
                while stat.exists() and stat.read_text().split()[2] != "Z":
                    await anyio.sleep(0.01)


async def test_older_shims_publish_through_the_binary(
    ask: Client, daemon: Taskd, namespace: str
) -> None:
    heard: list[TaskExit] = []
    event = TaskExit(container_id="one", id="one", pid=7, exit_status=3)
    packed = Any(type_url="containerd.events.TaskExit", value=bytes(event))
    command = [*COMMAND, "--address", str(daemon.address), "publish"]
    async with anyio.create_task_group() as group:
        group.start_soon(exits, ask, heard)
        await anyio.sleep(0.3)
        subprocess.run(
            [*command, "--namespace", namespace, "--topic", "/tasks/exit"],
            input=bytes(packed),
            check=True,
            timeout=20,
        )
        with anyio.fail_after(5):
            while not heard:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert heard == [event]


async def test_fifty_containers_four_at_a_time_leave_no_trace(
    ask: Client, daemon: Taskd, namespace: str
) -> None:
    await ask.start("warm", "/bin/true")
    await ask.end("warm")

    def held() -> Counter[tuple[str, str]]:
        found = vars(traces(daemon.state, daemon.root, namespace))
        found |= {"descriptors": descriptors(daemon.pid)}
        return Counter((kind, each) for kind, names in found.items() for each in names)

    # Some of it may be the first one's, which is still ending.
    before = held()
    limiter = anyio.Semaphore(4)

    async def run(name: str) -> None:
        async with limiter:
            await ask.start(name, "/bin/sh", "-c", "exit 3")
            waited = await ask.tasks.wait(WaitRequest(container_id=name))
            assert waited.exit_status == 3
            assert await ask.remove(name) == 3

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(run, uuid.uuid4().hex)
    with anyio.move_on_after(5):
        while held() - before:
            await anyio.sleep(0.05)
    assert not held() - before
