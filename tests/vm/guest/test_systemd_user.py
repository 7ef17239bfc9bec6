"""taskd as a service of a user's, without root: by the unit that comes with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.client import Client
from harness.containers import process
from harness.daemons import client
from vm.guest.tools import ROOT, cgroup, create, parent, run, soon

from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    MetricsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
    WaitRequest,
)
from taskd.proto.containerd.v1.types import Status
from taskd.proto.io.containerd.cgroups.v2 import Metrics

USER = "someone"
UID = 1000
RUNTIME_FOLDER = Path(f"/run/user/{UID}")
SOCKET = RUNTIME_FOLDER / "taskd/taskd.sock"
UNIT = "/opt/taskd/lib/systemd/user/taskd.service"
OCI, PROCESS = "io.taskd.oci.v1", "io.taskd.process.v1"

DRIVERS = {
    "runc": Options(),
    "runc-systemd": Options(systemd_cgroup=True),
    "crun": Options(binary_name="crun"),
    "crun-systemd": Options(binary_name="crun", systemd_cgroup=True),
}


def as_user(*command: str) -> str:
    environment = (
        f"PATH={os.environ['PATH']}",
        f"HOME=/home/{USER}",
        f"XDG_RUNTIME_DIR={RUNTIME_FOLDER}",
        f"DBUS_SESSION_BUS_ADDRESS=unix:path={RUNTIME_FOLDER}/bus",
    )
    user = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups")
    return run(*user, "env", "--ignore-environment", "--chdir=/", *environment, *command)


def show(key: str) -> str:
    command = ("systemctl", "--user", "show", "--value", "--property", key, "taskd.service")
    return as_user(*command)


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    run("useradd", "--create-home", "--uid", str(UID), "--shell", "/bin/sh", USER)
    run("loginctl", "enable-linger", USER)
    soon((RUNTIME_FOLDER / "bus").is_socket)
    units = f"/home/{USER}/.config/systemd/user"
    as_user("mkdir", "-p", units)
    as_user("cp", UNIT, units)
    as_user("systemctl", "--user", "enable", "--now", "taskd.service")
    yield
    print(run("journalctl", f"_UID={UID}", "--no-pager"))
    as_user("systemctl", "--user", "disable", "--now", "taskd.service")


@pytest.fixture
async def ask(service: None, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    for folder in (rootfs, *rootfs.parents[:-2]):
        folder.chmod(0o755)
    async with client(SOCKET, namespace) as channel:
        yield Client(channel, rootfs)


def document(ask: Client, folder: Path, *arguments: str) -> dict[str, Any]:
    """What runc itself says a user's container is to be."""
    folder.chmod(0o777)
    as_user("runc", "spec", "--rootless", "--bundle", str(folder))
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    found["process"] |= {"args": list(arguments), "terminal": False}
    found["root"]["path"] = str(ask.rootfs)
    return found


def test_it_serves_as_soon_as_it_is_started(service: None) -> None:
    as_user("systemctl", "--user", "restart", "taskd.service")
    assert SOCKET.is_socket()
    assert SOCKET.stat().st_uid == UID
    assert "Server:" in as_user("ctr", "--address", str(SOCKET), "version")


@pytest.mark.parametrize("options", DRIVERS.values(), ids=DRIVERS)
async def test_a_life(ask: Client, folder: Path, options: Options) -> None:
    wanted = document(ask, folder, "sleep", "9999")
    wanted["linux"]["resources"] = {}
    if options.systemd_cgroup:
        wanted["linux"]["cgroupsPath"] = "user.slice:taskd:one"
        wanted["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 40}}
    await create(ask, "one", wanted, OCI, options)
    pid = (await ask.tasks.create(CreateTaskRequest(container_id="one"))).pid
    await ask.tasks.start(StartRequest(container_id="one"))
    assert Path(f"/proc/{pid}").stat().st_uid == UID
    assert Path(f"/proc/{parent(pid)}").stat().st_uid == UID

    sleeping = process(["/bin/sh", "-c", "exit 7"])
    await ask.tasks.exec(ExecProcessRequest(container_id="one", exec_id="two", spec=sleeping))
    await ask.tasks.start(StartRequest(container_id="one", exec_id="two"))
    waited = await ask.tasks.wait(WaitRequest(container_id="one", exec_id="two"))
    assert waited.exit_status == 7

    if options.systemd_cgroup:
        place = cgroup(pid)
        # crun makes one more below the scope that it gets from systemd, and limits it by itself.
        scope = place.parent if place.name == "container" else place
        assert scope.name == "taskd-one.scope"
        assert f"{64 << 20}\n" in {(each / "memory.max").read_text() for each in (place, scope)}
        (metric,) = (await ask.tasks.metrics(MetricsRequest(filters=["id==one"]))).metrics
        assert metric.data is not None
        pids = Metrics.parse(metric.data.value).pids
        assert pids is not None
        assert pids.current == 1
        await ask.tasks.pause(PauseTaskRequest(container_id="one"))
        assert "frozen 1" in (place / "cgroup.events").read_text()
        await ask.tasks.resume(ResumeTaskRequest(container_id="one"))
    assert await ask.end("one") == 137
    if options.systemd_cgroup:
        assert not scope.exists()


async def test_limits_of_a_plain_process(ask: Client, folder: Path) -> None:
    """In a cgroup below what systemd has delegated to the user."""
    own = cgroup(int(show("MainPID"))).relative_to(ROOT)
    wanted = {
        "process": {"args": ["sleep", "9999"], "cwd": "/", "env": [f"PATH={os.environ['PATH']}"]},
        "linux": {
            "cgroupsPath": f"/{own.parent}/test-one",
            "resources": {"pids": {"limit": 40}, "memory": {"limit": 64 << 20}},
        },
    }
    await create(ask, "one", wanted, PROCESS, Options())
    pid = (await ask.tasks.create(CreateTaskRequest(container_id="one"))).pid
    await ask.tasks.start(StartRequest(container_id="one"))
    place = cgroup(pid)
    assert place == ROOT / own.parent / "test-one"
    assert (place / "pids.max").read_text() == "40\n"
    await ask.tasks.pause(PauseTaskRequest(container_id="one"))
    assert "frozen 1" in (place / "cgroup.events").read_text()
    assert await ask.end("one") == 137
    assert not place.exists()


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_containers_live_through_a_restart(ask: Client, folder: Path, how: str) -> None:
    await create(ask, "one", document(ask, folder, "sleep", "9999"), OCI, Options())
    pid = (await ask.tasks.create(CreateTaskRequest(container_id="one"))).pid
    await ask.tasks.start(StartRequest(container_id="one"))
    daemon = show("MainPID")
    if how == "restart":
        as_user("systemctl", "--user", "restart", "taskd.service")
    else:
        os.kill(int(daemon), signal.SIGKILL)
        soon(lambda: show("MainPID") not in ("0", daemon) and show("ActiveState") == "active")
    ask.channel.close()  # the next call makes a new connection
    state = (await ask.tasks.get(GetRequest(container_id="one"))).process
    assert state is not None
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    await ask.tasks.kill(KillRequest(container_id="one", signal=9))
    assert await ask.end("one") == 137
