"""Standard streams of our own shims under a daemon, at their edges."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from grpclib.exceptions import GRPCError
from harness.client import Client
from harness.containers import process
from harness.daemons import Taskd, client
from harness.leaks import descriptors

from taskd.proto.containerd.services.tasks.v1 import (
    CloseIoRequest,
    CreateTaskRequest,
    DeleteProcessRequest,
    ExecProcessRequest,
    ListPidsRequest,
    StartRequest,
    WaitRequest,
)

pytestmark = pytest.mark.usefixtures("clean")

OCI = "io.taskd.oci.v1"
PROCESS = "io.taskd.process.v1"
SECONDS = 20.0
both = pytest.mark.parametrize("runtime", [OCI, PROCESS])


@pytest.fixture
async def ask(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with client(daemon.address, namespace) as channel:
        yield Client(channel, rootfs)


async def exec_(ask: Client, name: str, *command: str, **streams: str) -> None:
    await ask.tasks.exec(
        ExecProcessRequest(
            container_id="one",
            exec_id=name,
            spec=process(command, terminal=bool(streams.get("terminal"))),
            **streams,  # type: ignore[arg-type]
        )
    )


async def start(ask: Client, name: str) -> None:
    await ask.tasks.start(StartRequest(container_id="one", exec_id=name))


async def wait(ask: Client, name: str) -> int:
    with anyio.fail_after(SECONDS):
        return (await ask.tasks.wait(WaitRequest(container_id="one", exec_id=name))).exit_status


async def delete(ask: Client, name: str) -> None:
    await ask.tasks.delete_process(DeleteProcessRequest(container_id="one", exec_id=name))


async def shims_descriptors(ask: Client) -> int:
    """How many the shim has, whose child the container's process is."""
    found = await ask.tasks.list_pids(ListPidsRequest(container_id="one"))
    pid = found.processes[0].pid
    return len(
        descriptors(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
    )


@both
async def test_streams_that_are_no_fifos(ask: Client, tmp_path: Path, runtime: str) -> None:
    await ask.start("one", "/bin/sleep", "1000", runtime=runtime)
    (tmp_path / "file").write_bytes(b"x" * 200_000)
    before = await shims_descriptors(ask)
    for number, stdin in enumerate(("/dev/null", str(tmp_path / "file")) * 2):
        name, out = f"e{number}", tmp_path / f"out{number}"
        out.touch()
        await exec_(ask, name, "/bin/wc", "-c", stdin=stdin, stdout=str(out))
        await start(ask, name)
        await ask.tasks.close_io(CloseIoRequest(container_id="one", exec_id=name, stdin=True))
        assert await wait(ask, name) == 0
        assert int(out.read_text()) == (0 if stdin == "/dev/null" else 200_000)
        await delete(ask, name)
    assert await shims_descriptors(ask) == before
    assert await ask.end("one") == 137


@both
async def test_who_has_waited_may_read_all(ask: Client, tmp_path: Path, runtime: str) -> None:
    await ask.start("one", "/bin/sleep", "1000", runtime=runtime)
    for number in range(10):
        name, path = f"e{number}", tmp_path / f"out{number}"
        os.mkfifo(path)
        # A client that never sees an end, since it has both ends open.
        output = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        found = bytearray()

        async def read(output: int, found: bytearray) -> None:
            while True:
                with anyio.CancelScope():
                    await anyio.wait_readable(output)
                take(output, found)

        def take(output: int, found: bytearray) -> None:
            try:
                while True:
                    found += os.read(output, 65536)
            except BlockingIOError:
                pass

        await exec_(ask, name, "/bin/head", "-c", "300000", "/dev/zero", stdout=str(path))
        async with anyio.create_task_group() as group:
            group.start_soon(read, output, found)
            await start(ask, name)
            assert await wait(ask, name) == 0
            take(output, found)
            assert len(found) == 300_000
            group.cancel_scope.cancel()
        os.close(output)
        await delete(ask, name)
    assert await ask.end("one") == 137


@both
async def test_a_name_that_is_longer_than_a_pipe(ask: Client, tmp_path: Path, runtime: str) -> None:
    await ask.start("one", "/bin/sleep", "1000", runtime=runtime)
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name)
    await exec_(
        ask,
        "two",
        "/" + "x" * 70_000,
        stdout=str(tmp_path / "stdout"),
        stderr=str(tmp_path / "stderr"),
    )
    with anyio.fail_after(SECONDS), pytest.raises(GRPCError, match="exec: .*/xxx.* … .*xxx"):
        await start(ask, "two")
    assert await ask.end("one") == 137


async def test_a_log_on_a_full_disk(ask: Client, daemon: Taskd, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "small", disk], check=True)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(60_000))
        uri = f"file://{disk}/log"
        await ask.container(
            "one", "/bin/sh", "-c", "while :; do echo a line of a log; done", runtime=OCI
        )
        await ask.tasks.create(CreateTaskRequest(container_id="one", stdout=uri))
        await ask.tasks.start(StartRequest(container_id="one"))
        with anyio.fail_after(SECONDS):
            while "no space left on device: what comes is dropped" not in daemon.log.read_text():
                await anyio.sleep(0.05)
        size = (disk / "log").stat().st_size
        ballast.unlink()
        with anyio.fail_after(SECONDS):
            while (disk / "log").stat().st_size <= size:
                await anyio.sleep(0.05)
        assert await ask.end("one") == 137
    finally:
        subprocess.run(["umount", disk], check=True)
    assert re.search(
        r"one: standard output to .*/disk/log: \d+ bytes were dropped", daemon.log.read_text()
    )
