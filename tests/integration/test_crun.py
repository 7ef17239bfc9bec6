"""taskd's shim with crun: Debian 12's own, and the newest, whose log and statuses differ."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError
from harness.client import Client
from harness.containers import SPEC_TYPE, process, spec
from harness.daemons import Taskd, client
from harness.generations import crun
from harness.real import need

from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteProcessRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.google.protobuf import Any
from taskd.wellknown import pack, to_any

pytestmark = pytest.mark.usefixtures("clean")

RUNTIME = "io.taskd.oci.v1"

# crun takes no mixture of cgroup versions: it is shown the first one alone.
SCRIPT = """#!/bin/sh
exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"' - {crun} "$@"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Taskd]:
    """One for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    with Taskd(folder / "taskd", "--log-level", "debug") as running:
        yield running
    print(running.log.read_text())
    shutil.rmtree(folder)


@pytest.fixture(params=["the system's", "the newest"])
def options(request: pytest.FixtureRequest, folder: Path) -> Options:
    need("crun", "unshare")
    own = shutil.which("crun") if request.param == "the system's" else crun() / "crun"
    script = folder / "crun"
    script.write_text(SCRIPT.format(crun=own))
    script.chmod(0o755)
    return Options(binary_name=str(script))


@pytest.fixture
async def ask(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)


async def make(ask: Client, options: Options, *arguments: str, **more: object) -> None:
    document = json.loads(spec(ask.rootfs, arguments).value)
    document["process"] |= more
    container = Container(
        id="one",
        runtime=ContainerRuntime(name=RUNTIME, options=to_any(pack(options))),
        spec=Any(type_url=SPEC_TYPE, value=json.dumps(document).encode()),
    )
    await ask.containers.create(CreateContainerRequest(container=container))


async def run(ask: Client, name: str, *arguments: str) -> int:
    """An exec, to its end."""
    command = process(arguments)
    await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id=name, spec=command))
    await ask.tasks.start(StartRequest(container_id="one", exec_id=name))
    await ask.tasks.wait(WaitRequest(container_id="one", exec_id=name))
    deleted = DeleteProcessRequest(container_id="one", exec_id=name)
    return (await ask.tasks.delete_process(deleted)).exit_status


async def test_a_life(ask: Client, options: Options) -> None:
    await make(ask, options, "/bin/sleep", "1000")
    pid = (await ask.tasks.create(CreateTaskRequest(container_id="one"))).pid
    assert (await ask.tasks.start(StartRequest(container_id="one"))).pid == pid
    assert await run(ask, "two", "/bin/sh", "-c", "exit 7") == 7
    found = (await ask.tasks.list_pids(ListPidsRequest(container_id="one"))).processes
    assert [each.pid for each in found] == [pid]
    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    state = (await ask.tasks.get(GetRequest(container_id="one"))).process
    assert state is not None
    assert state.status is Status.PAUSED
    await ask.tasks.resume(ResumeTaskRequest(container_id="one"))
    await ask.tasks.kill(KillRequest(container_id="one", signal=15))
    with pytest.raises(GRPCError, match="not stopped|running"):
        await ask.remove("one")
    assert await ask.end("one") == 137


CASES: list[tuple[list[str], dict[str, object], str]] = [
    (["nosuch"], {}, "executable file `nosuch` not found in $PATH: No such file or directory"),
    (["/no/such"], {}, "/no/such"),
    (["/bin/true"], {"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}, "RLIMIT_X"),
]


async def test_its_errors_are_told(ask: Client, options: Options) -> None:
    """Of what cannot be created, and of what cannot be executed; in words of its log."""
    for arguments, more, words in CASES:
        await make(ask, options, *arguments, **more)
        with pytest.raises(GRPCError) as caught:
            await ask.tasks.create(CreateTaskRequest(container_id="one"))
        assert words in (caught.value.message or "")
        assert "unable to retrieve" not in (caught.value.message or "")
        await ask.containers.delete(DeleteContainerRequest(id="one"))
    await make(ask, options, "/bin/sleep", "1000")
    await ask.tasks.create(CreateTaskRequest(container_id="one"))
    await ask.tasks.start(StartRequest(container_id="one"))
    with pytest.raises(GRPCError, match="`nosuch` not found in"):
        await run(ask, "two", "nosuch")
    assert await ask.end("one") == 137
