"""The daemon as a process: start, stop, restart, and what it refuses."""

from __future__ import annotations

import errno
import grp
import json
import os
import signal
import socket
import stat
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from harness.containers import spec
from harness.daemons import Daemon, Taskd, client
from harness.pace import SLOWER
from harness.real import BOTH_SHIMS, need
from harness.shell import Shell

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.introspection.v1 import IntrospectionStub
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Empty


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse to."""
    return Shell()("serve", *options, status=1)


@pytest.fixture
def folders(folder: Path) -> list[str]:
    return ["--root", str(folder / "r"), "--state", str(folder / "s")]


@pytest.mark.parametrize("level", ["info", "panic"])
def test_a_line_when_it_serves_and_one_when_it_stops(folder: Path, level: str) -> None:
    taskd = Taskd(folder, "--log-level", level).start()
    assert taskd.stop() == 0
    lines = [line.partition(" INFO    taskd: ") for line in taskd.log.read_text().splitlines()]
    assert [line for _, _, line in lines] == [f"serving on {taskd.address}", "stopping on SIGTERM"]
    moments = [datetime.fromisoformat(moment) for moment, _, _ in lines]
    assert all(moment.tzinfo for moment in moments)
    assert moments == sorted(moments)
    assert not taskd.address.exists()
    assert not Path(f"{taskd.address}.ttrpc").exists()


def test_a_log_of_json(folder: Path) -> None:
    taskd = Taskd(folder, "--log-format", "json", "--log-level", "debug").start()
    assert taskd.stop() == 0
    entries = [json.loads(line) for line in taskd.log.read_text().splitlines()]
    assert [entry["msg"] for entry in entries if entry["logger"] == "taskd"] == [
        f"serving on {taskd.address}",
        "stopping on SIGTERM",
    ]
    assert "debug" in {entry["level"] for entry in entries}


def test_a_group_whose_members_may_connect(folder: Path) -> None:
    folder.chmod(0o711)
    group = grp.getgrgid(1)
    with Taskd(folder, "--group", group.gr_name) as taskd:
        found = taskd.address.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 1, 0o660)
        # Events of shims are root's affair.
        assert Path(f"{taskd.address}.ttrpc").stat().st_gid == 0
        assert connected(taskd.address, groups=[1]) == 0
        assert connected(taskd.address, groups=[2]) == errno.EACCES


def connected(address: Path, groups: list[int]) -> int:
    """What connecting says to nobody, as a member of `groups`."""
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os._exit(socket.socket(socket.AF_UNIX).connect_ex(str(address)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_group_that_there_is_not(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"taskd: --group: there is no group nosuch\n"):
        Taskd(folder, "--group", "nosuch").start()


def test_the_sockets_owner_in_the_configuration(folder: Path) -> None:
    with Taskd(folder, settings="[grpc]\nuid = 1\ngid = 2\n") as taskd:
        found = taskd.address.stat()
        assert (found.st_uid, found.st_gid) == (1, 2)


def test_sigint_stops_it_too(folder: Path) -> None:
    taskd = Taskd(folder).start()
    assert taskd.process is not None
    taskd.process.send_signal(signal.SIGINT)
    assert taskd.process.wait(10) == 0


@pytest.mark.parametrize("shared", ["root", "state"])
def test_a_second_daemon_on_one_of_the_folders_is_refused(folder: Path, shared: str) -> None:
    with Taskd(folder) as taskd:
        own = {"root": folder / "r2", "state": folder / "s2", shared: getattr(taskd, shared)}
        options = ["--root", str(own["root"]), "--state", str(own["state"])]
        done = serve(*options, "--address", str(folder / "other.sock"))
        words = f"another taskd (pid {taskd.pid}) uses the {shared} folder {own[shared]}"
        assert done.stderr == f"taskd: {words}\n"


def test_a_live_socket_is_not_replaced(folder: Path, folders: list[str]) -> None:
    with Taskd(folder) as taskd:
        done = serve(*folders, "--address", str(taskd.address))
        assert f"another daemon listens on {taskd.address}" in done.stderr
        assert taskd.address.exists()


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    with Taskd(folder) as taskd:
        taskd.kill()
        assert taskd.address.exists()
        taskd.start()


def test_what_is_no_socket_is_left_alone(folder: Path, folders: list[str]) -> None:
    file = folder / "file"
    file.write_text("precious")
    done = serve(*folders, "--address", str(file))
    assert f"{file} exists and is not a socket" in done.stderr
    assert file.read_text() == "precious"


def test_a_bad_configuration_is_named(folder: Path) -> None:
    file = folder / "config.toml"
    file.write_text("colour = 'blue'\n")
    assert serve("--config", str(file)).stderr == f"taskd: {file}: colour: unknown key\n"


def test_the_service_manager_is_notified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        taskd = Taskd(folder).start()
        assert manager.recv(64) == b"READY=1"
        taskd.stop()
        assert manager.recv(64) == b"STOPPING=1"


async def test_its_identity_outlives_it(folder: Path) -> None:
    seen = []
    taskd = Taskd(folder)
    for _ in range(2):
        with taskd:
            async with client(taskd.address, "any") as channel:
                server = await IntrospectionStub(channel).server(Empty())
                assert server.pid == taskd.pid
                seen.append(server.uuid)
    assert seen[0] == seen[1]


async def start_task(taskd: Daemon, namespace: str, rootfs: Path, *arguments: str) -> int:
    async with client(taskd.address, namespace) as channel:
        container = Container(
            id="one",
            runtime=ContainerRuntime(name="io.containerd.runc.v2"),
            spec=spec(rootfs, arguments),
        )
        await ContainersStub(channel).create(CreateContainerRequest(container=container))
        await TasksStub(channel).create(CreateTaskRequest(container_id="one"))
        return (await TasksStub(channel).start(StartRequest(container_id="one"))).pid


async def end_task(taskd: Daemon, namespace: str) -> int:
    async with client(taskd.address, namespace) as channel:
        tasks = TasksStub(channel)
        await tasks.kill(KillRequest(container_id="one", signal=9))
        status = (await tasks.wait(WaitRequest(container_id="one"))).exit_status
        await tasks.delete(DeleteTaskRequest(container_id="one"))
        await ContainersStub(channel).delete(DeleteContainerRequest(id="one"))
        return status


@BOTH_SHIMS
@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.usefixtures("clean")
async def test_containers_outlive_the_daemon(
    daemon: Taskd, namespace: str, rootfs: Path, how: str
) -> None:
    pid = await start_task(daemon, namespace, rootfs, "/bin/sleep", "1000")
    getattr(daemon, how)()
    os.kill(pid, 0)
    daemon.start()
    async with client(daemon.address, namespace) as channel:
        state = (await TasksStub(channel).get(GetRequest(container_id="one"))).process
        assert state is not None
        assert (state.pid, state.status.name) == (pid, "RUNNING")
    assert await end_task(daemon, namespace) == 137


@pytest.mark.usefixtures("clean")
@BOTH_SHIMS
async def test_stopping_does_not_wait_for_waiters(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    need("ctr")
    await start_task(daemon, namespace, rootfs, "/bin/sleep", "1000")
    follower = subprocess.Popen(
        daemon.ctr_command("events", namespace=namespace),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.3)
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 5 * SLOWER
    finally:
        follower.kill()
        follower.wait()
    daemon.start()
    await end_task(daemon, namespace)


def test_what_an_earlier_daemon_left_half_made_is_removed(folder: Path) -> None:
    taskd = Taskd(folder)
    bundles = taskd.state / "io.containerd.runtime.v2.task" / "some"
    half_made, foreign = bundles / "one", bundles / "two"
    for bundle in (half_made, foreign):
        bundle.mkdir(parents=True)
    (half_made / "config.json").write_text("{}")
    (foreign / "precious").write_text("")
    stray = taskd.root / "io.containerd.runtime.v2.task" / "some" / "gone"
    stray.mkdir(parents=True)
    need("ctr")
    with taskd:
        taskd.ctr("version", namespace="any")  # is answered when all is loaded
        assert not half_made.exists()
        assert not stray.exists()
        assert (foreign / "precious").exists()
    assert f"{foreign} is no bundle; it is left alone" in taskd.log.read_text()
