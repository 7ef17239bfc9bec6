from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.containers import make_rootfs
from harness.daemons import Containerd, Daemon, Taskd
from harness.leaks import leaving_nothing
from harness.pace import stretch_deadlines
from harness.real import need
from hypothesis import settings as hypothesis

from taskd.check.traces import cgroups
from taskd.grpc import engine

# How long one example takes says more about the machine than about the code.
hypothesis.register_profile("taskd", deadline=None)
hypothesis.load_profile("taskd")
stretch_deadlines()

# They need the daemon and the bus of docker-compose.yml, which tells where these are.
collect_ignore = [] if "TASKD_ADDRESS" in os.environ else ["composed"]
# They need a machine that is theirs alone, which vm/test_machine.py makes.
collect_ignore += [] if "TASKD_VM" in os.environ else ["vm/guest"]
# They take minutes: `make soak`.
collect_ignore += [] if "TASKD_SOAK_CONTAINERS" in os.environ else ["soak"]


_CLONE_NEWNS = 0x20000
_LOG = 16 << 10
"""Bytes of a daemon's log that are shown of a test that failed."""


def pytest_configure(config: pytest.Config) -> None:
    """Workers have their shims' sockets apart: tests look there for what is left behind.

    What is ignored where tests are started (``make test &``) is not what is tested: those who end
    programs by SIGINT expect them to end.
    """
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        sockets = Path("/run/containerd/s")
        sockets.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "sockets", sockets], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What says that it takes long comes first, lest one worker is left alone with it."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=seconds, reverse=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Who reads of a failure wants to know what its daemons have said: some are seen only once."""
    report = yield
    if report.failed:
        for name, daemon in getattr(item, "funcargs", {}).items():
            if isinstance(daemon, Daemon) and daemon.log.exists():
                said = daemon.log.read_bytes()[-_LOG:].decode(errors="replace")
                report.sections.append((f"end of the log of {name}", said))
    return report


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem with busybox."""
    need("busybox")
    return make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace that no other test has: the Go shim keeps runc's state under its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    # runc leaves the parents of its cgroups, of which thousands make the kernel slow.
    for folder in cgroups(name):
        with suppress(OSError):
            folder.rmdir()


@pytest.fixture(params=[each.value for each in engine.Engine])
def on_engine(request: pytest.FixtureRequest) -> Iterator[engine.Engine]:
    """Both of them, for servers and channels that are made in this process."""
    chosen = engine.Engine(request.param)
    engine.select(chosen)
    yield chosen
    engine.select(None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="taskd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def runc_shim(request: pytest.FixtureRequest) -> Iterator[None]:
    """The shim that runs the containers of ``io.containerd.runc.v2`` under taskd.

    It is containerd's, unless a test says `harness.real.BOTH_SHIMS`.
    """
    with pytest.MonkeyPatch.context() as patch:
        own = getattr(request, "param", "") == "own-shim"
        patch.setattr(Taskd, "own_shim", own)
        patch.setattr(Taskd, "engine", "h2" if own else "")
        yield


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> str:
    """Those that a test is marked with, such as `harness.real.MORTAL`."""
    marker = request.node.get_closest_marker("settings")
    return str(marker.args[0]) if marker else ""


@pytest.fixture
def daemon(folder: Path, runc_shim: None, settings: str) -> Iterator[Taskd]:
    """A taskd that runs."""
    need("containerd-shim-runc-v2", "runc")
    with Taskd(folder / "taskd", "--log-level", "debug", settings=settings) as running:
        yield running
    # Shown if the test fails.
    print(running.log.read_text())


@pytest.fixture
def containerd(folder: Path) -> Iterator[Containerd]:
    """A containerd that runs."""
    need("containerd", "containerd-shim-runc-v2", "runc")
    with Containerd(folder / "containerd") as running:
        yield running


@pytest.fixture
def clean(daemon: Taskd, namespace: str) -> Iterator[None]:
    """The test must leave nothing of its namespace behind."""
    with leaving_nothing(daemon, namespace):
        yield
