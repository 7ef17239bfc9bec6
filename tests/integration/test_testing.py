"""`taskd.testing`: whatever ends a test, nothing of its daemon and its containers is left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.real import need

from taskd.errors import AlreadyExists
from taskd.testing import daemon

PROCESS, OCI = "io.taskd.process.v1", "io.taskd.oci.v1"
SLEEP = ["/bin/sleep", "1000"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="runc is root's here")


def mounts() -> list[str]:
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def running(folder: Path) -> list[str]:
    """Command lines of the processes that have to do with `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = [(process / name).read_bytes() for name in ("environ", "cmdline")]
            about.append(os.fsencode((process / "cwd").readlink()))
        except OSError:
            continue
        if any(os.fsencode(folder) in each for each in about):
            found.append(about[1].replace(b"\0", b" ").decode(errors="replace"))
    return found


def wait_until_gone(folder: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while folder.exists() or running(folder):
        assert time.monotonic() < deadline, (folder.exists(), running(folder))
        time.sleep(0.05)


@pytest.mark.parametrize("runtime", [PROCESS, pytest.param(OCI, marks=as_root)])
async def test_a_container_needs_no_specification(runtime: str, rootfs: Path) -> None:
    need("runc")
    before = mounts()
    script = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]
    async with daemon() as taskd:
        async with taskd.container(runtime, script, rootfs=rootfs) as container:
            done = await container.run()
            assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
        folder = taskd.folder
    assert mounts() == before
    assert not folder.exists()
    assert running(folder) == []


async def test_what_a_specification_says_is_added() -> None:
    more = {"process": {"cwd": "/tmp"}, "annotations": {"a": "b"}}
    async with (
        daemon() as taskd,
        taskd.container(
            PROCESS, ["/bin/sh", "-c", 'pwd; echo "$A"'], env=["A=1"], spec=more
        ) as one,
    ):
        assert (await one.run()).text == "/tmp\n1\n"


async def test_execs_have_ids_of_their_own_unless_told_otherwise() -> None:
    async with daemon() as taskd, taskd.container(PROCESS, SLEEP) as container:
        await container.start()
        for status in (4, 5):
            process = await container.exec(["/bin/sh", "-c", f"exit {status}"])
            assert (await process.wait()).code == status
        await container.exec(SLEEP, id="mine")
        with pytest.raises(AlreadyExists):
            await container.exec(SLEEP, id="mine")


async def test_an_error_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with daemon() as taskd, taskd.container(PROCESS, SLEEP) as container:
            await container.start()
            raise ValueError("mine")
    assert running(taskd.folder) == []


async def test_a_sibling_that_fails_leaves_nothing() -> None:
    """Creates are cancelled in the middle, one after another."""
    folders = []

    async def fail(after: float) -> None:
        await asyncio.sleep(after)
        raise ValueError("a sibling's")

    async def contain(number: int) -> None:
        async with taskd.container(PROCESS, SLEEP, id=f"c{number}") as container:
            await container.start()
            await asyncio.sleep(60)

    for attempt in range(4):
        with pytest.raises(ExceptionGroup):
            async with daemon() as taskd, asyncio.TaskGroup() as group:
                folders.append(taskd.folder)
                for number in range(6):
                    group.create_task(contain(number))
                group.create_task(fail(0.03 * attempt))
    for folder in folders:
        # A process for others that was just being started ends after a minute without a daemon.
        wait_until_gone(folder, 90.0)


async def test_a_daemon_that_is_cancelled_clears_up() -> None:
    begun = asyncio.Event()
    folders = []

    async def use() -> None:
        async with daemon() as taskd, taskd.container(PROCESS, SLEEP) as container:
            folders.append(taskd.folder)
            await container.start()
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # an impatient one, in the middle of the clearing
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until_gone(folders[0])


KILLED = """
import asyncio, sys
from pathlib import Path
from taskd.testing import daemon

async def main():
    async with daemon() as taskd:
        sleep, rootfs = ["/bin/sleep", "1000"], Path(sys.argv[2])
        async with taskd.container(sys.argv[1], sleep, rootfs=rootfs) as one:
            await one.start()
            print(taskd.folder, one.pid, flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("runtime", [PROCESS, pytest.param(OCI, marks=as_root)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda each: each.name)
def test_a_process_that_is_killed_leaves_nothing(
    runtime: str, number: signal.Signals, rootfs: Path
) -> None:
    before = mounts()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, runtime, rootfs], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            name, pid = process.stdout.readline().split()
            folder = Path(name)
            assert folder.is_dir()
            sleeping = os.pidfd_open(int(pid))
        finally:
            process.send_signal(number)
    wait_until_gone(folder)
    assert select.select([sleeping], [], [], 0)[0] == [sleeping]
    os.close(sleeping)
    assert mounts() == before


PROJECT = """
import pytest_asyncio
from taskd.testing import daemon

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def taskd():
    async with daemon() as running:
        yield running

@pytest_asyncio.fixture(loop_scope="{scope}")
async def container(taskd):
    async with taskd.container("io.taskd.process.v1", ["/bin/sleep", "1000"]) as made:
        await made.start()
        yield made
"""
TEST = """
import pytest

@pytest.mark.asyncio(loop_scope="{scope}")
@pytest.mark.parametrize("status", [0, 7])
async def test_it(container, status):
    process = await container.exec(["/bin/sh", "-c", f"exit {{status}}"])
    assert (await process.wait()).code == status
"""


@pytest.mark.parametrize("scope", ["function", "session"])
def test_fixtures_of_pytest_asyncio(folder: Path, scope: str) -> None:
    (folder / "conftest.py").write_text(PROJECT.format(scope=scope))
    (folder / "test_it.py").write_text(TEST.format(scope=scope))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@as_root
def test_processes_beside_each_other_do_not_meet(rootfs: Path) -> None:
    """Each has a container of the same id, and kills only its own."""
    script = (
        KILLED.replace('Path("/")', f'Path("{rootfs}")')
        .replace("1000", "0.5")
        .replace("asyncio.sleep(60)", "asyncio.sleep(0.2); sys.exit((await one.wait()).code)")
    )
    several = [
        subprocess.Popen([sys.executable, "-c", script, OCI, rootfs], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[1] for process in several] == [None] * 3
    assert [process.returncode for process in several] == [0] * 3


REFUSING = """#!{python}
from taskd.errors import Unknown
from taskd.shim import Container, run

class Refusing(Container):
    async def start(self, init):
        return await self.spawn(["/bin/sleep", "1000"], init)

    async def delete(self):
        raise Unknown("never")

run(Refusing, "io.example.refusing.v1")
"""


async def test_a_shim_that_refuses_to_let_go(folder: Path) -> None:
    """It is killed, and no other one goes on with what it has, to refuse as well."""
    shim = folder / "containerd-shim-refusing-v1"
    shim.write_text(REFUSING.format(python=sys.executable))
    shim.chmod(0o755)
    async with daemon() as taskd:
        container = await taskd.container(str(shim), SLEEP)
        await container.start()
    wait_until_gone(taskd.folder)
