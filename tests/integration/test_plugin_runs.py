"""The pytest plugin in runs of pytest of its own: with other plugins, failing, and killed."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.daemons import Containerd
from harness.generations import GENERATIONS
from harness.real import AS_NOBODY, NOBODY, need

pytest_plugins = ["pytester"]

KINDS = """
import asyncio, unittest
import pytest

ECHO = ["/bin/sh", "-c", "echo $0; exit 3", "hello"]

def test_plain(taskd_container):
    assert taskd_container(args=ECHO).communicate().text == "hello\\n"

@pytest.mark.asyncio
async def test_function_loop(taskd_container):
    assert (await (await taskd_container(args=ECHO)).communicate()).text == "hello\\n"

@pytest.fixture
async def container(taskd_container):
    yield await taskd_container(args=ECHO)

@pytest.mark.parametrize("number", range(3))
async def test_auto(container, number):
    assert (await container.communicate()).text == "hello\\n"

@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("number", range(3))
async def test_session_loop(taskd_container, taskd_event_log, number):
    async with taskd_container(args=ECHO, id="same") as container:
        assert (await container.wait()).code == 3
        await taskd_event_log.wait_for("/tasks/exit", "same")

class TestPlain(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _inject(self, taskd_container):
        self.make = taskd_container

    def test_it(self):
        assert self.make(args=ECHO).wait().code == 3

class TestIsolated(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def _inject(self, taskd_container):
        self.make = taskd_container

    async def test_it(self):
        assert (await (await self.make(args=ECHO)).wait()).code == 3

def test_namespace(taskd, record_property):
    assert taskd.namespace.startswith("pytest-")
"""

ANYIO = """
import pytest

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.mark.parametrize("number", range(2))
async def test_it(taskd_container, number):
    container = await taskd_container(args=["/bin/sh", "-c", "exit 5"])
    assert (await container.wait()).code == 5
"""


@pytest.fixture
def runner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "TASKD_ADDRESS", "CONTAINERD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return pytester


OPTIONS = ("-p", "no:cacheprovider", "--taskd-runtime", "io.taskd.process.v1")


def test_each_kind_of_test(runner: pytest.Pytester) -> None:
    """In two workers, which do not meet."""
    runner.makepyfile(test_kinds=KINDS)
    runner.makeini("[pytest]\nasyncio_mode = auto")
    done = runner.runpytest_subprocess("-n", "2", *OPTIONS, timeout=100)
    done.assert_outcomes(passed=11)


def test_with_anyio_alone(runner: pytest.Pytester) -> None:
    runner.makepyfile(test_anyio=ANYIO)
    done = runner.runpytest_subprocess("-p", "no:asyncio", *OPTIONS, timeout=100)
    done.assert_outcomes(passed=2)


FAILING = """
def test_fails(taskd_container):
    one = taskd_container(args=["/bin/sh", "-c", "echo what it said; exit 9"], id="one")
    one.wait()
    two = taskd_container(args=["/bin/sleep", "1000"], timeout=0.2)
    assert two.wait().code == 0

def test_goes_on(taskd_container):
    assert taskd_container(args=["/bin/true"]).wait().code == 0
"""


def test_the_report_of_a_failure(runner: pytest.Pytester) -> None:
    runner.makepyfile(FAILING)
    done = runner.runpytest_subprocess(*OPTIONS, timeout=100)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*- container one -*",
            "state: stopped, pid *, exit code 9",
            "  | what it said",
            "events:",
            "*TaskExit(container_id='one', * exit_status=9*",
            "specification, *",
            '  process: {"args": *what it said*',
            "ended since it took longer than 0.2 s",
            "*- taskd's log, its last lines -*",
        ]
    )


KILLED = """
import os, time

def test_it(taskd, taskd_container):
    container = taskd_container({source}args=["/bin/sleep", "1000"])
    print("\\nbegun", container.pid, taskd.server.pid if taskd.server else 0, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_one_that_is_killed_leaves_nothing(runner: pytest.Pytester, number: signal.Signals) -> None:
    runner.makepyfile(test_killed=KILLED.format(source=""))
    process = runner.popen(
        [sys.executable, "-m", "pytest", "-s", *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(rb"begun (\d+) (\d+)", line):
                pids = [os.pidfd_open(int(pid)) for pid in found.groups()]
                break
        else:
            pytest.fail("it did not begin")
        process.send_signal(number)
        deadline = time.monotonic() + 60
        for pid in pids:
            assert select.select([pid], [], [], deadline - time.monotonic())[0]
            os.close(pid)


def test_on_a_containerd(runner: pytest.Pytester, folder: Path, rootfs: Path) -> None:
    """The newest, and with a pytest that is killed: its containers go, and the others stay."""
    need("containerd", "runc")
    binaries = GENERATIONS[-1].binaries()
    path = f"{binaries}:{os.environ['PATH']}" if binaries else ""
    source = f"{str(rootfs)!r}, "
    passing = KILLED.format(source=source).replace("time.sleep(60)", "")
    passing += "    assert container.exec(['/bin/echo', 'x']).__enter__().stdout.text() == 'x\\n'\n"
    with Containerd(folder / "containerd", path=path) as daemon:
        runner.makepyfile(test_passing=passing)
        options = ("-p", "no:cacheprovider", "--taskd-address", str(daemon.address))
        done = runner.runpytest_subprocess(*options, timeout=100)
        done.assert_outcomes(passed=1)
        assert daemon.ctr("namespaces", "ls", "-q", namespace="x").stdout == ""
        runner.makepyfile(test_passing=KILLED.format(source=source))
        process = runner.popen(
            [sys.executable, "-m", "pytest", "-s", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with process:
            assert process.stdout is not None
            found = next(filter(None, (re.match(rb"begun (\d+)", each) for each in process.stdout)))
            pid = os.pidfd_open(int(found[1]))
            process.kill()
        assert select.select([pid], [], [], 60)[0]
        os.close(pid)
        deadline = time.monotonic() + 30
        while left := daemon.ctr("namespaces", "ls", "-q", namespace="x").stdout:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def test_without_root(runner: pytest.Pytester, folder: Path) -> None:
    need("setpriv")
    os.chown(folder, NOBODY, NOBODY)
    (folder / "test_it.py").write_text(
        "def test_it(taskd_container):\n"
        "    done = taskd_container(args=['/usr/bin/id', '-u']).communicate()\n"
        f"    assert done.text == '{NOBODY}\\n'\n"
    )
    places = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(folder)],
        env=os.environ | places,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in folder.glob("taskd-*/**/*") if not path.is_dir()] == []
