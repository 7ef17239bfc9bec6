"""Processes of shims that hold many containers, and containers that come and go in them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from grpclib import GRPCError
from harness.client import Client
from harness.daemons import Daemon, Taskd, client
from harness.docker import Dockerd
from harness.leaks import leaving_nothing, traces
from harness.real import BOTH_SHIMS, need

from taskd import procfs, ttrpc
from taskd.client.logs import uri
from taskd.codec import encode
from taskd.proto.containerd.services.containers.v1 import GetContainerRequest
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    WaitRequest,
)
from taskd.proto.containerd.task.v2 import DeleteRequest, KillRequest
from taskd.proto.containerd.task.v2 import WaitRequest as ShimWaitRequest
from taskd.proto.taskd.v1 import ListShimsRequest, ShimsStub

OCI = "io.taskd.oci.v1"
PODS = {"io.kubernetes.cri.sandbox-id": "pod", "io.kubernetes.cri.container-type": "container"}
SOON = 'idle = "0.5s"\n'


@contextmanager
def taskd(folder: Path, namespace: str, settings: str) -> Iterator[Taskd]:
    need("runc", "busybox")
    with (
        Taskd(folder / "taskd", "--log-level", "debug", settings=f"[shims]\n{settings}") as daemon,
        leaving_nothing(daemon, namespace),
    ):
        yield daemon
    print(daemon.log.read_text())


def shims(daemon: Daemon, namespace: str) -> list[int]:
    """The processes that serve the namespace, and not calls of a shim's command line."""
    found = traces(daemon.state, daemon.root, namespace).processes
    return sorted(int(each.split()[0]) for each in found if "-address" in each)


async def test_containers_share_processes_and_each_has_its_own_end(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    with taskd(folder, namespace, f"pool = 3\n{SOON}") as daemon:
        names = [f"c{number}" for number in range(7)]
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            for number, name in enumerate(names):
                script = f"trap 'exit {number}' TERM; while :; do sleep 0.1; done"
                await ask.start(name, "/bin/sh", "-c", script, runtime=OCI)
            assert len(shims(daemon, namespace)) == 3
        daemon.kill()
        daemon.start()
        assert len(shims(daemon, namespace)) == 3
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            # An earlier daemon's are filled up.
            for name in ("more", "and more"):
                await ask.start(name.replace(" ", "-"), "/bin/sleep", "1000", runtime=OCI)
            assert len(shims(daemon, namespace)) in (3, 4)  # one may be in reserve
            for number, name in enumerate(names):
                await ask.kill(name, signal.SIGTERM)
                answer = await ask.tasks.wait(WaitRequest(container_id=name))
                assert answer.exit_status == number
                assert await ask.remove(name) == number
            for name in ("more", "and-more"):
                assert await ask.end(name) == 137


async def test_a_process_is_ready_before_it_is_needed(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    with taskd(folder, namespace, f"pool = 2\n{SOON}") as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            for name in ("one", "two"):
                await ask.start(name, "/bin/sleep", "1000", runtime=OCI)
            # Nobody comes: it is not kept for ever.
            with anyio.fail_after(20):
                while "is idle; ending it" not in daemon.log.read_text():
                    await anyio.sleep(0.05)
                while len(shims(daemon, namespace)) > 1:
                    await anyio.sleep(0.05)
            for name in ("one", "two"):
                assert await ask.end(name) == 137


async def test_the_death_of_a_process_ends_what_is_in_it(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    with taskd(folder, namespace, f"adopt = false\npool = 2\n{SOON}") as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("one", "/bin/sleep", "1000", runtime=OCI)
            await ask.start("two", "/bin/sleep", "1000", runtime=OCI)
            found = (await ShimsStub(channel).list(ListShimsRequest())).shims
            (first,) = [each.pid for each in found if "one" in {who.id for who in each.tenants}]
            await ask.start("three", "/bin/sleep", "1000", runtime=OCI)
            # What ended with its shim is deleted at once: who waits later finds nothing.
            waits = [
                asyncio.create_task(ask.tasks.wait(WaitRequest(container_id=name)))
                for name in ("one", "two")
            ]
            await ask.tasks.list(ListTasksRequest())  # answered after they were heard
            os.kill(first, signal.SIGKILL)
            with anyio.fail_after(20):
                assert [(await each).exit_status for each in waits] == [137, 137]
            await ask.start("four", "/bin/sleep", "1000", runtime=OCI)
            for name in ("three", "four"):
                assert await ask.end(name) == 137


async def test_a_pod_has_its_own_process(folder: Path, namespace: str, rootfs: Path) -> None:
    with taskd(folder, namespace, f"pool = 5\n{SOON}") as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("other", "/bin/sleep", "1000", runtime=OCI)
            for name in ("pod", "one"):
                await ask.start(name, "/bin/sleep", "1000", runtime=OCI, annotations=PODS)
            assert len(shims(daemon, namespace)) == 2
            for name in ("one", "pod", "other"):
                assert await ask.end(name) == 137


async def test_creations_that_are_given_up_leave_nothing_in_a_pool(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    """Whenever that is: on the connection that all share, a call cannot be taken back."""
    log = uri(folder / "log")

    def left() -> list[str]:
        commands = [procfs.command(each.pid) for each in procfs.processes()]
        found = traces(daemon.state, daemon.root, namespace)
        folders = [*map(Path, found.bundles | found.runc)]
        return [
            *(each for each in commands if "taskd-logger" in each and str(folder) in each),
            # One that is being removed has another name.
            *(str(each) for each in folders if each.name.removeprefix(".") in names),
        ]

    names = [f"c{number}" for number in range(12)]
    with taskd(folder, namespace, SOON) as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            # Somebody lives in the process all the time.
            await ask.start("base", "/bin/sleep", "1000", runtime=OCI)
            for number, name in enumerate(names):
                await ask.container(name, "/bin/sleep", "1000", runtime=OCI)
                with anyio.move_on_after(0.005 + 0.02 * number):
                    await ask.tasks.create(
                        CreateTaskRequest(container_id=name, stdout=log, stderr=log)
                    )
            for name in names:
                with suppress(GRPCError):  # there is none, most of the time
                    await ask.tasks.delete(DeleteTaskRequest(container_id=name))
            with anyio.fail_after(60):
                while left():
                    await anyio.sleep(0.05)
            for name in names:
                await ask.tasks.create(CreateTaskRequest(container_id=name))
                await ask.remove(name)
            assert await ask.end("base") == 137
        with anyio.fail_after(60):
            while shims(daemon, namespace):
                await anyio.sleep(0.05)


@pytest.mark.parametrize("size", ["shared = true", "pool = 2"])
async def test_a_hung_process_gets_nothing_new(
    folder: Path, namespace: str, rootfs: Path, size: str
) -> None:
    with taskd(folder, namespace, f"{size}\n{SOON}") as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("hung", "/bin/sleep", "1000", runtime=OCI)
            (shim,) = shims(daemon, namespace)
            os.kill(shim, signal.SIGSTOP)
            try:
                with anyio.fail_after(30):
                    for name in ("one", "two"):
                        await ask.start(name, "/bin/sleep", "1000", runtime=OCI)
                # The second one has not tried it again.
                assert daemon.log.read_text().count("does not answer: it gets nothing new") == 1
                for name in ("one", "two"):
                    assert await ask.end(name) == 137
            finally:
                os.kill(shim, signal.SIGCONT)
            with anyio.fail_after(20):
                while "answers again" not in daemon.log.read_text():
                    await anyio.sleep(0.05)
            await ask.start("three", "/bin/sleep", "1000", runtime=OCI)
            for name in ("three", "hung"):
                assert await ask.end(name) == 137


async def come_and_go(
    daemon: Taskd, namespace: str, rootfs: Path, runtime: str, annotations: dict[str, str]
) -> None:
    """Four clients whose containers come and go, so that a process has few of them, or none."""

    async def work(number: int) -> None:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            for turn in range(6):
                name = f"c{number}-{turn}"
                script = f"exit {number + 1}"
                await ask.start(
                    name, "/bin/sh", "-c", script, runtime=runtime, annotations=annotations
                )
                await ask.tasks.wait(WaitRequest(container_id=name))
                assert await ask.remove(name) == number + 1

    await asyncio.gather(*map(work, range(4)))


@pytest.mark.parametrize("size", ["shared = true", "pool = 2"])
async def test_the_last_one_out_and_the_next_one_in(
    folder: Path, namespace: str, rootfs: Path, size: str
) -> None:
    """A process ends with its last container, and another one is on the way to it."""
    with taskd(folder, namespace, f'{size}\nidle = "0s"\n') as daemon:
        await come_and_go(daemon, namespace, rootfs, OCI, {})


@BOTH_SHIMS
@pytest.mark.usefixtures("clean")
async def test_the_last_one_out_of_a_pod_and_the_next_one_in(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    await come_and_go(daemon, namespace, rootfs, "io.containerd.runc.v2", PODS)


@BOTH_SHIMS
@pytest.mark.usefixtures("clean")
async def test_a_pod_outlives_a_daemon_that_was_deleting_its_first_container(
    daemon: Taskd, namespace: str, rootfs: Path
) -> None:
    """It was killed after the shim had deleted the task, and before the bundle was removed."""
    async with client(daemon.address, namespace) as channel:
        ask = Client(channel, rootfs)
        pids = [
            await ask.start(name, "/bin/sleep", "1000", annotations=PODS) for name in ("pod", "one")
        ]
    # A process for containers without a pod is started first, and ends again.
    with anyio.fail_after(60):
        while len(found := shims(daemon, namespace)) > 1:
            await anyio.sleep(0.05)
    (shim,) = found
    daemon.kill()
    bundle = daemon.state / "io.containerd.runtime.v2.task" / namespace / "pod"
    address = (bundle / "address").read_text()
    async with aclosing(await ttrpc.Client.connect(address, timeout=5)) as connection:
        for method, request in (
            ("Kill", KillRequest(id="pod", signal=9)),
            ("Wait", ShimWaitRequest(id="pod")),
            ("Delete", DeleteRequest(id="pod")),
        ):
            await connection.call("containerd.task.v2.Task", method, encode(request), timeout=10)
    daemon.start()
    async with client(daemon.address, namespace) as channel:
        ask = Client(channel, rootfs)
        with anyio.fail_after(10):
            while bundle.exists():
                await anyio.sleep(0.05)
        assert shims(daemon, namespace) == [shim]
        assert Path(f"/proc/{pids[1]}").exists()
        await ask.start("two", "/bin/sleep", "1000", annotations=PODS)
        for name in ("one", "two"):
            assert await ask.end(name) == 137


def test_docker_runs_on_a_pool(folder: Path, namespace: str, rootfs: Path) -> None:
    """It asks for containerd's runtime, as it always does, and knows of nothing."""
    need("dockerd", "/usr/bin/docker")
    settings = f'pool = 3\n{SOON}\n[runtimes]\n"io.containerd.runc.v2" = "{OCI}"\n'
    with (
        taskd(folder, namespace, settings) as daemon,
        Dockerd(folder / "docker", daemon.address, namespace) as docker,
    ):
        docker.sh(f"tar -C {rootfs} -c . | docker import - busybox")
        run = "docker run --rm --network none busybox"
        said = docker.sh(f"""
            for n in 1 2 3 4 5 6; do
                ({run} sh -c "echo $n; exit $n"; echo $?) > $DOCKER_CONFIG.$n &
            done
            wait; echo $(cat $DOCKER_CONFIG.?)
            for n in 1 2 3 4; do up c$n busybox sleep 1000; done
            docker exec c4 sh -c 'echo in c4; exit 7'; echo $?
            docker stop -t 0 c1 > /dev/null; state c1 c2
            """)
        assert said == "1 1 2 2 3 3 4 4 5 5 6 6\nin c4\n7\nexited 137\nrunning 0\n"
        found = traces(daemon.state, daemon.root, namespace).processes
        served = [each for each in found if "containerd-shim-" in each]
        assert served
        assert all("-oci-v1 " in each and "-group pool-" in each for each in served)


async def test_one_runtime_answers_in_anothers_stead(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    settings = f'pool = 2\n{SOON}\n[runtimes]\n"io.containerd.runc.v2" = "{OCI}"\n'
    with taskd(folder, namespace, settings) as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.container("one", "/bin/sleep", "1000")
            await ask.tasks.create(CreateTaskRequest(container_id="one"))
            found = traces(daemon.state, daemon.root, namespace).processes
            assert all("containerd-shim-oci-v1" in each for each in found)
            record = (await ask.containers.get(GetContainerRequest(id="one"))).container
            assert record is not None
            assert record.runtime is not None
            assert record.runtime.name == "io.containerd.runc.v2"
            assert await ask.end("one") == 137
