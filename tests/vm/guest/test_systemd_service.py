"""taskd as a service of systemd's, by the unit that comes with it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from vm.guest.tools import ROOT, cgroup, parent, run, show, soon

SERVICE = "taskd.service"
UNIT = "/opt/taskd/lib/systemd/system/taskd.service"
SOCKET = Path("/run/taskd/taskd.sock")
SHIMS = ("io.containerd.runc.v2", "io.taskd.oci.v1")


def ctr(*arguments: str, check: bool = True) -> str:
    return run("ctr", "--address", str(SOCKET), *arguments, check=check)


def states() -> dict[str, tuple[int, str]]:
    lines = ctr("task", "ls").splitlines()[1:]
    return {line.split()[0]: (int(line.split()[1]), line.split()[2]) for line in lines}


def told(topic: str) -> list[dict[str, Any]]:
    """What the journal has of a topic."""
    said = run("taskd", "events", "--after", "0", "--no-follow", "--json", f'topic=="{topic}"')
    return [json.loads(line)["event"] for line in said.splitlines()]


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    run("cp", UNIT, "/etc/systemd/system")
    run("systemctl", "enable", "--now", SERVICE)
    yield
    print(run("journalctl", "--unit", "taskd.service", "--no-pager"))
    run("systemctl", "disable", "--now", SERVICE)


@pytest.fixture
def names(service: None, rootfs: Path) -> Iterator[list[str]]:
    """Containers that sleep, one with each shim."""
    found = []
    for number, runtime in enumerate(SHIMS):
        name = f"sleeper-{number}"
        options = ("--detach", "--runtime", runtime, "--rootfs", str(rootfs))
        ctr("run", *options, name, "/bin/sleep", "9999")
        found.append(name)
    yield found
    for name in found:
        ctr("task", "delete", "--force", name, check=False)
        ctr("container", "delete", name, check=False)


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)


def test_it_serves_as_soon_as_it_is_started(service: None) -> None:
    run("systemctl", "stop", SERVICE)
    assert not SOCKET.exists()
    run("systemctl", "start", SERVICE)
    assert SOCKET.is_socket()
    assert "Server:" in ctr("version")
    assert show(SERVICE, "ActiveState") == "active"
    assert (show(SERVICE, "Type"), show(SERVICE, "KillMode"), show(SERVICE, "Delegate")) == (
        "notify",
        "process",
        "yes",
    )


def test_where_things_are(names: list[str]) -> None:
    """Shims beside the daemon, containers in cgroups of their own; neither knows of systemd."""
    daemon = int(show(SERVICE, "MainPID"))
    assert cgroup(daemon) == ROOT / "system.slice/taskd.service"
    for name, (pid, _) in states().items():
        assert cgroup(pid) == ROOT / f"default/{name}"
        shim = parent(pid)
        assert cgroup(shim) == cgroup(daemon)
        for each in (pid, shim):
            assert not {"NOTIFY_SOCKET", "INVOCATION_ID"} & environment(each).keys() - {
                "INVOCATION_ID" if each == shim else ""
            }


def test_a_container_has_the_soft_limit_that_programs_expect(names: list[str]) -> None:
    for pid, _ in states().values():
        limits = Path(f"/proc/{pid}/limits").read_text()
        (line,) = (each for each in limits.splitlines() if each.startswith("Max open files"))
        assert line.split()[3] == "1024"


def test_no_cgroup_in_the_specification(service: None, rootfs: Path, folder: Path) -> None:
    """The runtime makes one beside the service's, which has processes of its own."""
    bundle = folder / "config.json"
    run("runc", "spec", "--bundle", str(folder))
    document = json.loads(bundle.read_text())
    document["process"] |= {"args": ["sleep", "9999"], "terminal": False}
    document["root"]["path"] = str(rootfs)
    document["linux"]["resources"] = {"pids": {"limit": 33}}
    bundle.write_text(json.dumps(document))
    for number, runtime in enumerate(SHIMS):
        name = f"bare-{number}"
        ctr("run", "--detach", "--runtime", runtime, "--config", str(bundle), name)
        try:
            pid, _ = states()[name]
            place = cgroup(pid)
            assert place.name == name
            assert (place / "pids.max").read_text() == "33\n"
        finally:
            ctr("task", "delete", "--force", name)
            ctr("container", "delete", name)
        assert not place.exists()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_containers_live_through_a_restart(names: list[str], how: str) -> None:
    before = states()
    daemon = show(SERVICE, "MainPID")
    if how == "restart":
        run("systemctl", "restart", SERVICE)
    else:
        os.kill(int(daemon), signal.SIGKILL)
        soon(
            lambda: (
                show(SERVICE, "MainPID") not in ("0", daemon)
                and show(SERVICE, "ActiveState") == "active"
            )
        )
    assert states() == before
    for name in names:
        assert ctr("task", "exec", "--exec-id", "x", name, "/bin/echo", "in") == "in"
        ctr("task", "kill", "--signal", "KILL", name)
    soon(lambda: {state for _, state in states().values()} == {"STOPPED"})
    pids = {pid for pid, _ in before.values()}
    assert {each["pid"] for each in told("/tasks/exit")} >= pids


def test_what_ends_while_it_is_stopped_is_told(names: list[str]) -> None:
    before = states()
    run("systemctl", "stop", SERVICE)
    assert show(SERVICE, "ActiveState") == "inactive"
    for pid, _ in before.values():
        assert Path(f"/proc/{pid}").exists()
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
    run("systemctl", "start", SERVICE)
    soon(lambda: {state for _, state in states().values()} == {"STOPPED"})
    for pid, _ in before.values():
        (exit_,) = soon(lambda pid=pid: [e for e in told("/tasks/exit") if e["pid"] == pid])
        assert exit_["exit_status"] == 137


def test_nothing_is_left_in_its_cgroup(service: None) -> None:
    procs = ROOT / "system.slice/taskd.service/cgroup.procs"

    def shims() -> list[str]:
        found = []
        for pid in procs.read_text().split():
            with suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
        return [each for each in found if "containerd-shim" in each or each.endswith("runc")]

    soon(lambda: not shims())
