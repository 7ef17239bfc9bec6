"""What the daemon and its command line say: one line, that names the thing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from harness.client import Client
from harness.daemons import Taskd, client
from harness.disks import full_disk
from harness.mounts import tmpfs
from harness.real import need
from harness.shell import Shell

from taskd.proto.containerd.services.tasks.v1 import CreateTaskRequest, KillRequest

PROCESS = "io.taskd.process.v1"


def refused(folder: Path, settings: str, **environment: str) -> str:
    """What a daemon says that does not start."""
    taskd = Taskd(folder / "taskd", settings=settings)
    done = subprocess.run(
        taskd.command(),
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | environment,
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(
    ("package", "settings", "words"),
    [
        ("nats", '[events.nats]\nservers = ["nats://x"]', "[events.nats] needs nats-py"),
        ("prometheus_client", '[metrics]\naddress = "127.0.0.1:1"', "[metrics] needs prometheus"),
        ("opentelemetry", '[tracing]\nendpoint = "http://x"', "[tracing] needs OpenTelemetry"),
    ],
)
def test_a_package_that_is_not_installed(
    folder: Path, package: str, settings: str, words: str
) -> None:
    (folder / "without" / package).mkdir(parents=True)
    (folder / "without" / package / "__init__.py").write_text("raise ImportError('none')\n")
    said = refused(folder, settings, PYTHONPATH=str(folder / "without"))
    assert said.startswith(f"taskd: {words}")
    assert said.count("\n") == 1


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(folder, f'[metrics]\naddress = "127.0.0.1:{port}"\n')
    assert said == f"taskd: metrics on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_that_is_not_root_has_folders_of_its_own(folder: Path) -> None:
    """And is told where."""
    user = 4_000_000
    for name in ("run", "data"):
        (folder / name).mkdir()
        os.chown(folder / name, user, user)
    folder.chmod(0o711)
    address = folder / "run/taskd/taskd.sock"
    program = (
        "import os, sys\n"
        "import anyio._backends._asyncio, uvloop, taskd.daemon\n"  # as root, who may read them
        "from taskd.cli import main\n"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
        "sys.exit(main(['serve']))\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=log)
    try:
        for _ in range(300):
            if "serving on" in (folder / "log").read_text() or process.poll() is not None:
                break
            subprocess.run(["sleep", "0.1"], check=True)
        said = (folder / "log").read_text()
        assert f" taskd: with {folder}/data/taskd and {folder}/run/taskd\n" in said
        assert f" taskd: serving on {address}\n" in said
        assert address.stat().st_uid == user
    finally:
        process.terminate()
        assert process.wait(20) == 0


async def test_what_failed_is_worth_a_line(folder: Path, namespace: str, rootfs: Path) -> None:
    with Taskd(folder / "taskd") as taskd:
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.container("one", "/no/such", runtime=PROCESS)
            await ask.container("two", "/no/such", runtime="io.no.such.v1")
            for name in ("one", "two", "missing\x1b[2J"):
                with pytest.raises(GRPCError):
                    await ask.tasks.create(CreateTaskRequest(container_id=name))
            with pytest.raises(GRPCError):
                await ask.tasks.kill(KillRequest(container_id="one", signal=9))
    lines = [line for line in taskd.log.read_text().splitlines() if "WARNING" in line]
    create = "taskd.api.server: /containerd.services.tasks.v1.Tasks/Create"
    assert f"{create} (one): UNKNOWN: " in lines[0]
    assert "/no/such" in lines[0]
    assert f"{create} (two): UNKNOWN: " in lines[1]
    assert f"{create} (missing\\x1b[2J): NOT_FOUND: " in lines[2]
    assert len(lines) == 3


async def test_a_full_disk_is_named(folder: Path, namespace: str, rootfs: Path) -> None:
    need("mount", "umount")
    taskd = Taskd(folder / "taskd")
    with tmpfs(taskd.state, "size=256k"), taskd:
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.container("one", "/bin/sleep", "1000", runtime=PROCESS)
            with full_disk(taskd.state), pytest.raises(GRPCError) as caught:
                await ask.tasks.create(CreateTaskRequest(container_id="one"))
            assert caught.value.status is Status.RESOURCE_EXHAUSTED
            words = f"failed to start shim: bundle of {namespace}/one: no space left on device"
            assert (caught.value.message or "").startswith(words)
            # Nothing is in the way when there is room.
            await ask.tasks.create(CreateTaskRequest(container_id="one"))
            assert await ask.end("one") == 137


async def test_trace_shows_each_call(folder: Path, namespace: str, rootfs: Path) -> None:
    with Taskd(folder / "taskd", "--log-level", "trace") as taskd:
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("one", "/bin/sh", "-c", "exit 3", runtime=PROCESS)
            await ask.end("one")
            with pytest.raises(GRPCError):
                await ask.tasks.kill(KillRequest(container_id="one", signal=9))
    log = taskd.log.read_text()
    took = r": \d+\.\d ms, "
    grpc = (
        rf"TRACE   taskd\.calls: gRPC /containerd\.services\.tasks\.v1\.Tasks/%s in '{namespace}'"
    )
    shim = rf"TRACE   taskd\.calls: ttrpc /containerd\.task\.v\d\.Task/%s to shim {namespace}/one"
    forward = (
        r"TRACE   taskd\.calls: ttrpc /containerd\.services\.events\.ttrpc\.v1\.Events/Forward"
    )
    for method in ("Create", "Start", "Wait", "Delete"):
        assert re.search(grpc % method + took + "OK", log), method
        assert re.search(shim % method + took + "OK", log), method
    assert re.search(grpc % "Kill" + took + "NOT_FOUND: ", log)
    assert re.search(forward + " of a shim" + took + "OK", log)
    assert "hpack" not in log


STATLESS = """#!{python}
from taskd.shim import Container, run

class Statless(Container):
    async def start(self, init):
        return await self.spawn(["/bin/sleep", "1000"], init)

run(Statless, "io.example.statless.v1")
"""


async def test_scrapes_of_a_shim_that_measures_nothing(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    shim = folder / "containerd-shim-statless-v1"
    shim.write_text(STATLESS.format(python=sys.executable))
    shim.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = f'[metrics]\naddress = "127.0.0.1:{port}"\n'
    with Taskd(folder / "taskd", settings=settings) as taskd:
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("one", "/bin/true", runtime=str(shim))
            for _ in range(3):
                process = await anyio.run_process(
                    [
                        *(sys.executable, "-c"),
                        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)",
                        f"http://127.0.0.1:{port}/v1/metrics",
                    ]
                )
                assert process.stdout == b"200\n"
            assert await ask.end("one") == 137
    assert "asking shim" not in taskd.log.read_text()


@pytest.mark.parametrize("template", ["a.b", "x.{node}", "{topic}"])
def test_a_subject_that_is_none(template: str) -> None:
    command = [*("taskd", "events"), *("--nats", "nats://127.0.0.1:1"), *("--subject", template)]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"taskd: --subject: {template!r} ")


def test_an_error_on_a_terminal_is_escaped(folder: Path) -> None:
    config = folder / "\x1b[2Jc.toml"
    config.write_text("x = ")
    done = Shell()("serve", "--config", config, status=1)
    assert done.stderr.startswith(f"taskd: {folder}/\\x1b[2Jc.toml: ")
    assert json.dumps(done.stderr).count("\\u001b") == 0
