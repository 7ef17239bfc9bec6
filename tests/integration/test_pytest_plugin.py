"""The pytest plugin: its fixtures, as those who write tests have them."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.real import need

from taskd import pidfd
from taskd.errors import FailedPrecondition, NotFound
from taskd.testing import ready

PROCESS = "io.taskd.process.v1"
SLEEP = ["/bin/sleep", "1000"]


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


@pytest.fixture(params=["process", "runc"])
def where(request: pytest.FixtureRequest, rootfs: Path) -> dict[str, Any]:
    """Options for a plain process, and for a container proper."""
    if request.param == "process":
        return {"runtime": PROCESS}
    need("runc", "containerd-shim-runc-v2")
    return {"source": rootfs}


def test_a_plain_function(taskd_container: Any, where: dict[str, Any]) -> None:
    container = taskd_container(args=sh("echo hello; exit 3"), **where)
    assert container.wait().code == 3
    assert container.stdout.text() == "hello\n"
    assert container.logs() == "hello\n"  # still


async def test_a_coroutine(taskd_container: Any, where: dict[str, Any]) -> None:
    async with (
        taskd_container(args=SLEEP, **where) as container,
        container.exec(sh("echo inside; exit 4")) as process,
    ):
        assert [line async for line in process.lines()] == ["inside"]
        assert (await process.wait()).code == 4
    other = await taskd_container(args=SLEEP, **where)
    assert (await other.stop()).code in (137, 143)


def test_when_it_is_ready(taskd_container: Any, where: dict[str, Any]) -> None:
    script = "sleep 0.2; echo here; touch /tmp/$0; sleep 0.2; echo there; sleep 1000"
    name = f"ready-{os.getpid()}"
    said = ready.log("^there$")
    for condition in (
        said,
        ready.file(f"/tmp/{name}"),
        ready.event("/tasks/start"),
    ):
        container = taskd_container(args=[*sh(script), name], ready=condition, **where)
        if condition is said:
            assert "there" in container.logs()
        container.delete(force=True)
    taskd_container(args=SLEEP, ready=ready.exec(["/bin/sh", "-c", "exit 0"]), **where)
    Path("/tmp", name).unlink(missing_ok=True)


def test_one_that_is_never_ready(taskd_container: Any, where: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition, match=r"ended with 5 before(.|\n)*\| what it said"):
        taskd_container(args=sh("echo what it said; exit 5"), ready=ready.log("never"), **where)
    with pytest.raises(TimeoutError, match=r"not ready \(exec .*\) after 0.3 s:\n  \| x"):
        taskd_container(
            args=sh("echo x; sleep 1000"),
            ready=ready.exec(["/bin/sh", "-c", "exit 1"]),
            ready_timeout=0.3,
            **where,
        )


def test_servers(taskd_container: Any, taskd_free_port: Callable[[], int], tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    port = taskd_free_port()
    assert port != taskd_free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    taskd_container(
        args=serve,
        runtime=PROCESS,
        cwd=str(tmp_path),
        network="host",
        ready=ready.http(port, "/page"),
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page") as answer:
        assert answer.read() == b"hello"
    taskd_container(args=SLEEP, runtime=PROCESS, network="host", ready=ready.port(port))
    with pytest.raises(TimeoutError, match="http port"):
        taskd_container(
            args=SLEEP,
            runtime=PROCESS,
            network="host",
            ready=ready.http(port, "/no"),
            ready_timeout=0.2,
        )


def test_a_port_on_a_network_of_its_own(taskd_container: Any, rootfs: Path) -> None:
    need("runc", "containerd-shim-runc-v2")
    (rootfs / "bin/nc").unlink(missing_ok=True)
    (rootfs / "bin/nc").symlink_to("busybox")
    listen = ["/bin/nc", "-l", "-p", "8080"]
    taskd_container(rootfs, listen, network="none", ready=ready.port(8080))
    with pytest.raises(TimeoutError, match="port 8081"):
        taskd_container(rootfs, listen, network="none", ready=ready.port(8081), ready_timeout=0.3)


def test_files_in_and_out(taskd_container: Any, rootfs: Path, tmp_path: Path) -> None:
    need("runc", "containerd-shim-runc-v2")
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/file").write_text("in")
    container = taskd_container(
        rootfs,
        sh("ln -s /etc /tmp/up; ln -s /etc/outside /tmp/link; echo up; sleep 1000"),
        mounts=["tmpfs:/tmp"],
        ready=ready.log("up"),
    )
    container.copy_in(tmp_path / "tree", "/tmp/tree")
    container.copy_in(tmp_path / "tree/deep/file", "/tmp")
    container.copy_in(tmp_path / "tree/deep/file", "/tmp/link")  # in the link's place
    script = "cat /tmp/tree/deep/file /tmp/file /tmp/link; echo out > /tmp/tree/deep/file"
    with container.exec(sh(script)) as process:
        assert process.stdout.text() == "ininin"
        process.wait()
    container.copy_out("/tmp/tree", tmp_path / "back")
    assert (tmp_path / "back/deep/file").read_text() == "out\n"
    container.copy_in(tmp_path / "tree/deep/file", "/tmp/up/inside")  # its /etc, and not ours
    assert (rootfs / "etc/inside").read_text() == "in"
    assert not Path("/etc/inside").exists()
    (rootfs / "etc/inside").unlink()
    with pytest.raises(FileNotFoundError):
        container.copy_out("/no/such", tmp_path)


def test_one_that_takes_too_long(taskd_container: Any, where: dict[str, Any]) -> None:
    container = taskd_container(args=SLEEP, timeout=0.3, **where)
    assert container.wait(20).code == 137
    assert container.timed_out == 0.3


def test_what_is_told(taskd_container: Any, taskd_event_log: Any, rootfs: Path) -> None:
    need("runc", "containerd-shim-runc-v2")
    # Newer runcs need some 12 MiB in the container's group to start.
    from taskd.client import Limits

    hungry = "sleep 0.5; dd if=/dev/zero of=/dev/null bs=512M count=1; exit 7"
    limits = Limits(memory="32m", memory_swap="32m")
    container = taskd_container(rootfs, sh(hungry), limits=limits)
    assert taskd_event_log.wait_for("/tasks/oom", container.id).container_id == container.id
    told = taskd_event_log.wait_for("/tasks/exit", container.id)
    assert told.message.exit_status == container.wait().code
    with pytest.raises(TimeoutError, match="no /tasks/paused of .* but"):
        taskd_event_log.wait_for("/tasks/paused", container.id, timeout=0.1)


def test_a_shim_that_is_killed(
    taskd_container: Any, taskd_event_log: Any, where: dict[str, Any]
) -> None:
    """Of taskd's own, another goes on, as often as that happens, if the kernel lets it."""
    container = taskd_container(args=SLEEP, **where)
    container.exec(SLEEP)
    container.kill_shim()
    if where.get("runtime") == PROCESS and pidfd.tells_exits():
        for _ in range(2):
            container.state()  # answered when another goes on; a call that does things may fail
            with container.exec(sh("echo inside")) as process:
                assert process.stdout.text() == "inside\n"
                process.wait()
            container.kill_shim()
        assert container.state().status.name == "RUNNING"
        container.kill()
    with suppress(NotFound):  # it is deleted at once, if nobody waits for it
        assert container.wait(20).code == 137
    container.delete(force=True)
    taskd_event_log.wait_for("/tasks/delete", container.id, timeout=60)
    taskd_event_log.wait_for("/containers/delete", container.id, timeout=60)
    exits = [each for each in taskd_event_log.of(container.id) if each.topic == "/tasks/exit"]
    own = [each for each in exits if each.message.id == container.id]
    assert [each.message.exit_status for each in own] == [137]
    assert list(Path("/run").glob(f"taskd-io-*+{container.id}")) == []  # its exec's streams, too


def test_a_daemon_that_crashes(
    taskd: Any, taskd_container: Any, taskd_event_log: Any, where: dict[str, Any]
) -> None:
    container = taskd_container(args=sh("sleep 0.2; echo on; sleep 0.3; exit 6"), **where)
    pid = taskd.server.pid
    taskd.crash()
    taskd.start()
    assert taskd.server.pid != pid
    assert container.wait(30).code == 6
    assert container.logs() == "on\n"
    told = taskd_event_log.wait_for("/tasks/exit", container.id, timeout=30)
    assert told.message.exit_status == 6
    assert taskd_event_log.topics(container.id).count("/tasks/exit") == 1


async def test_pause_in_a_coroutine(
    taskd: Any, taskd_container: Any, where: dict[str, Any]
) -> None:
    container = await taskd_container(args=SLEEP, **where)
    await container.pause()
    assert [each.task.status.name for each in await taskd.aio.list()] == ["PAUSED"]
    await container.resume()


def test_one_that_leaves_the_daemon_away(taskd: Any, taskd_container: Any) -> None:
    taskd_container(args=SLEEP, runtime=PROCESS)
    taskd.crash()  # those who clear up after it start it again


def test_that_it_is_there_again(taskd: Any) -> None:
    assert taskd.server.is_running
    assert taskd.client.list() == []
