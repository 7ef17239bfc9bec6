"""The command line of a shim: what a daemon runs, and what it is answered."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.real import need

import taskd
from taskd import ttrpc
from taskd.codec import decode, encode
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, BootstrapResult
from taskd.proto.containerd.task import v3 as api
from taskd.proto.containerd.types import RuntimeInfo
from taskd.proto.google.protobuf import Any
from taskd.shim import Container, leftovers
from taskd.shim.command import FEATURES, Call, main
from taskd.shim.flags import Flags

NAME = "io.example.thing.v3"
SHIM = """
from taskd.shim import Container, run

class Thing(Container):
    groups = ("example.pod", *Container.groups)

    async def start(self, init):
        return await self.spawn(init.args, init)

run(Thing, "io.example.thing.v3")
"""


class Shims:
    """Calls of an executable, with bundles below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "shim.py"
        self.script.write_text(SHIM)
        self.addresses: set[str] = set()

    def bundle(self, id: str, annotations: dict[str, str] | None = None) -> Path:  # noqa: A002
        path = self.folder / id
        path.mkdir(exist_ok=True)
        spec = {"process": {"args": ["/bin/sleep", "1000"]}, "annotations": annotations or {}}
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def call(
        self, action: str, *flags: str, bundle: Path, given: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, str(self.script), "-namespace", "testing", "-id", bundle.name]
        command += ["-address", str(self.folder / "daemon.sock"), "-publish-binary", "x", *flags]
        return subprocess.run(
            [*command, action],
            cwd=bundle,
            env=os.environ | {"XDG_RUNTIME_DIR": str(self.folder)} | env,
            input=given,
            capture_output=True,
            timeout=30,
            check=False,
        )

    def answer(self, bundle: Path, given: bytes = b"", **env: str) -> bytes:
        """What ``start`` prints."""
        done = self.call("start", bundle=bundle, given=given, **env)
        assert (done.returncode, done.stderr) == (0, b"")
        address = (bundle / "address").read_text()
        self.addresses.add(address)
        return done.stdout

    def start(self, bundle: Path, given: bytes = b"", **env: str) -> str:
        return self.answer(bundle, given, **env).decode()


@pytest.fixture
def shims(folder: Path) -> Iterator[Shims]:
    shims = Shims(folder)
    yield shims
    for address in shims.addresses:
        with suppress(OSError):
            end(address)


def listener(address: str) -> int:
    """Pid of the process that listens there: at first that of the command that started it."""
    deadline = time.monotonic() + 20
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.removeprefix("unix://"))
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int(struct.unpack("3i", found)[0])
        if Path(f"/proc/{pid}").exists():
            return pid
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(address: str) -> None:
    os.kill(listener(address), signal.SIGKILL)
    Path(address.removeprefix("unix://")).unlink()


async def ask(address: str, method: str, request: object) -> bytes:
    client = await ttrpc.Client.connect(address)
    try:
        return await client.call("containerd.task.v3.Task", method, encode(request), timeout=10)  # type: ignore[arg-type]
    finally:
        await client.aclose()


async def test_a_life(shims: Shims) -> None:
    bundle = shims.bundle("one")
    address = shims.start(bundle)
    assert address == (bundle / "address").read_text()
    assert address.startswith("unix:///")
    path = Path(address.removeprefix("unix://"))
    assert path.stat().st_mode & 0o777 == 0o600
    pid = listener(address)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    daemon = shims.folder / "daemon.sock"
    assert command == f"containerd-shim-thing-v3 -namespace testing -id one -address {daemon}"
    assert os.getsid(pid) == pid
    for descriptor in range(3):
        assert Path(f"/proc/{pid}/fd/{descriptor}").readlink() == Path("/dev/null")
    os.kill(pid, signal.SIGTERM)  # is for its daemon to end
    found = decode(api.ConnectResponse, await ask(address, "Connect", api.ConnectRequest(id="one")))
    assert (found.shim_pid, found.task_pid) == (pid, 0)
    await ask(address, "Shutdown", api.ShutdownRequest(id="one"))
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not path.exists()


@pytest.mark.parametrize(("newest", "version"), [("2", 2), ("3", 3), ("7", 3), ("1", 2)])
def test_the_answer_to_a_daemon_that_takes_json(shims: Shims, newest: str, version: int) -> None:
    bundle = shims.bundle("one")
    answer = json.loads(shims.start(bundle, MAX_SHIM_VERSION=newest))
    address = (bundle / "address").read_text()
    assert answer == {"version": version, "address": address, "protocol": "ttrpc"}


async def test_a_daemon_of_containerd_2_3(shims: Shims) -> None:
    """It tells more, and takes a message for an answer."""
    bundle = shims.bundle("one")
    params = BootstrapParams(instance_id="one", namespace="testing", socket_dir=f"{shims.folder}/s")
    answer = shims.answer(bundle, encode(params), MAX_SHIM_VERSION="2")
    result = decode(BootstrapResult, answer)
    address = (bundle / "address").read_text()
    assert result == BootstrapResult(version=2, address=address, protocol="ttrpc")
    assert Path(address.removeprefix("unix://")).parent == shims.folder / "s"
    found = decode(api.ConnectResponse, await ask(address, "Connect", api.ConnectRequest(id="one")))
    assert found.shim_pid == listener(address)


def test_options_are_not_taken_for_parameters(shims: Shims) -> None:
    """Nor do two containers with the same options share a shim."""
    options = encode(Any(type_url="containerd.runc.v1.Options", value=b"x"))
    answers = {shims.answer(shims.bundle(name), options) for name in ("one", "two")}
    assert answers == {(shims.folder / name / "address").read_bytes() for name in ("one", "two")}
    assert len(answers) == 2


def test_its_log_is_the_bundles_fifo(shims: Shims) -> None:
    bundle = shims.bundle("one")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    shims.start(bundle)
    deadline, said = time.monotonic() + 20, b""
    while b"\n" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        with suppress(BlockingIOError):
            said += os.read(log, 1000)
    assert said == b"INFO serving one\n"
    os.close(log)


def test_containers_of_a_group_share_a_process(shims: Shims) -> None:
    pod = {"example.pod": "a"}
    first = shims.start(shims.bundle("one", pod))
    assert shims.start(shims.bundle("two", pod)) == first
    others = {
        shims.start(shims.bundle("three", {"example.pod": "b"})),
        shims.start(shims.bundle("four")),
        shims.start(shims.bundle("five", {"io.taskd.shim.group": "c"})),
    }
    assert len(others | {first}) == 4
    assert shims.start(shims.bundle("six"), TASKD_SHIM_GROUP="b") not in {first}
    assert len({listener(address) for address in others | {first}}) == 4
    # It keeps no folder busy that goes with its first container.
    assert Path(f"/proc/{listener(first)}/cwd").readlink() == Path("/")


def with_cgroup(name: str, of_type: str = "containerd.runc.v1.Options") -> bytes:
    return encode(Any(type_url=of_type, value=encode(Options(shim_cgroup=name))))


@pytest.fixture
def cgroup() -> Iterator[tuple[str, list[Path]]]:
    """A cgroup in every hierarchy, as one would make it for shims."""
    need()
    name = f"/shims-{os.getpid()}/inner"
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    # A cpuset takes nobody before it has been set up.
    roots = [root] if unified else [each for each in root.iterdir() if "cpuset" not in each.name]
    made = []
    for each in roots:
        with suppress(FileExistsError):  # a link to one that has two controllers
            (each / name[1:]).mkdir(parents=True)
            made.append(each / name[1:])
    yield name, made
    for folder in made:
        deadline = time.monotonic() + 20
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        folder.rmdir()
        folder.parent.rmdir()


@pytest.mark.parametrize("shim", ["Container", "HostProcess", "Oci"])
def test_its_cgroup(shims: Shims, cgroup: tuple[str, list[Path]], shim: str) -> None:
    name, folders = cgroup
    package = {"HostProcess": "taskd_process", "Oci": "taskd_oci"}.get(shim, "taskd.shim")
    shims.script.write_text(
        f"from {package} import {shim}\nfrom taskd.shim import run\n"
        f"run({shim}, 'io.example.thing.v3')\n"
    )
    bundle = shims.bundle("one")
    address = shims.start(bundle, given=with_cgroup(name))
    pid = listener(address)
    time.sleep(0.1)  # longer than `taskd.moves` goes on
    for folder in folders:
        assert str(pid) in (folder / "cgroup.procs").read_text().split(), folder
    end(address)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/none/such", "failed to load cgroup /none/such: cgroups: cgroup deleted"),
        ("/../outside", 'shim cgroup "/../outside" leaves the hierarchy: invalid argument'),
        ("a/../../b", 'shim cgroup "a/../../b" leaves the hierarchy: invalid argument'),
    ],
)
def test_a_cgroup_that_cannot_be(shims: Shims, name: str, words: str) -> None:
    bundle = shims.bundle("one")
    done = shims.call("start", bundle=bundle, given=with_cgroup(name))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"io.example.thing.v3: {words}"
    assert not Path((bundle / "address").read_text().removeprefix("unix://")).exists()
    # Options of others are none of ours.
    shims.start(bundle, given=with_cgroup(name, "example.Options"))


def test_a_socket_that_nobody_listens_on_any_more(shims: Shims) -> None:
    bundle = shims.bundle("one")
    address = shims.start(bundle)
    killed = listener(address)
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{killed}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert shims.start(bundle) == address
    assert listener(address) != killed


def test_delete_after_a_shim_that_was_killed(shims: Shims) -> None:
    bundle = shims.bundle("one")
    with subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True) as process:
        leftovers.note(bundle, process.pid)
        leftovers.note_init(bundle, process.pid)
        before = time.time()
        done = shims.call("delete", "-bundle", str(bundle), bundle=bundle)
        assert process.wait(10) == -signal.SIGKILL
    assert done.returncode == 0, done.stderr
    answer = decode(api.DeleteResponse, done.stdout)
    assert (answer.pid, answer.exit_status) == (process.pid, 137)
    assert answer.exited_at is not None
    assert before - 1 < answer.exited_at.seconds < time.time() + 1
    # Once more, and with nothing there, it is as good.
    (bundle / "init.pid").unlink()
    done = shims.call("delete", bundle=bundle)
    assert (done.returncode, decode(api.DeleteResponse, done.stdout).pid) == (0, 0)


@pytest.mark.parametrize("action", ["delete", "start"])
@pytest.mark.parametrize("shim", ["taskd_oci:Oci", "taskd_process:HostProcess"])
def test_what_the_command_line_does_without(folder: Path, shim: str, action: str) -> None:
    """A daemon waits for it, and calls as many at once as there are containers in a group."""
    module, _, kind = shim.partition(":")
    script = folder / "shim.py"
    script.write_text(
        f"import sys\nfrom taskd.shim import command\nfrom {module} import {kind}\n"
        "command.os._exit = lambda status: print(*sys.modules, file=sys.stderr)\n"
        f"command.run({kind}, 'io.example.thing.v1')\n"
    )
    bundle = folder / "one"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    flags = ["-namespace", "testing", "-id", "one", "-address", str(folder / "daemon.sock")]
    done = subprocess.run(
        [sys.executable, str(script), *flags, action],
        cwd=bundle,
        env=os.environ | {"PATH": "/none", "XDG_RUNTIME_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=True,
    )
    if action == "start":
        end(done.stdout.decode())
    imported = set(done.stderr.decode().split())
    assert {"taskd.shim.container", "taskd.mounts"} <= imported
    heavy = {"asyncio", "betterproto2", "grpclib", "dataclasses", "inspect", "logging"}
    heavy |= {"subprocess", "shutil", "tempfile", "argparse", "gettext", "taskd.proto"}
    if action == "delete":
        heavy |= {"socket", "hashlib", "taskd.shim_sockets", "taskd.shim.request"}
        heavy |= {"taskd.shim.placement", "taskd.moves"}
        if shim == "taskd_oci:Oci":
            heavy |= {"typing", "fcntl", "termios", "taskd.rooted", "taskd.shim.process"}
    assert not imported & heavy


def test_errors_are_told(shims: Shims) -> None:
    bundle = shims.bundle("one")
    (bundle / "config.json").unlink()
    done = shims.call("start", bundle=bundle)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"io.example.thing.v3: ")
    assert b"config.json" in done.stderr


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str, bytes]:
    answers: list[bytes] = []
    status = main(Container, NAME, Call(arguments, lambda: b"", answers.append, forks=True))
    said = capsys.readouterr()
    return status, said.out, said.err, b"".join(answers)


@pytest.mark.parametrize("flag", ["-v", "--v"])
def test_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    status, out, err, _ = run(capsys, flag)
    python = sys.version.split()[0]
    assert (status, err) == (0, "")
    assert out == f"{NAME}:\n  Version:  {taskd.__version__}\n  Python:   {python}\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _, answer = run(capsys, "-info")
    info = decode(RuntimeInfo, answer)
    assert info.version is not None
    assert (status, info.name, info.version.version) == (0, NAME, taskd.__version__)


OCI = "containerd.runc.v1.Options"


@pytest.mark.parametrize(
    ("script", "features"),
    [
        ("""echo '{"linux": {"mountExtensions": {}}}'""", {"linux": {"mountExtensions": {}}}),
        ("exit 1", None),
        ("echo words", None),
        ("echo 7", None),
    ],
)
def test_info_of_an_oci_runtime(folder: Path, script: str, features: object) -> None:
    runtime = folder / "runtime"
    runtime.write_text(f'#!/bin/sh\n[ "$*" = features ] || exit 2\n{script}\n')
    runtime.chmod(0o755)
    options = Any(type_url=OCI, value=encode(Options(binary_name=str(runtime))))
    info = decode(RuntimeInfo, oci_info(encode(options)).stdout)
    assert (info.name, info.options) == ("io.taskd.oci.v1", options)
    assert info.version is not None
    assert info.version.version == taskd.__version__
    if features is None:
        assert info.features is None
    else:
        assert info.features is not None
        assert info.features.type_url == FEATURES
        assert json.loads(info.features.value) == features


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Any(type_url="example.Options", value=b"x"), "type with url example.Options: not found"),
        (
            Any(type_url=OCI, value=encode(Options(binary_name="no-such-runtime"))),
            'failed to look up the path of "no-such-runtime": executable file not found in $PATH',
        ),
    ],
)
def test_info_that_there_is_not(options: Any, words: str) -> None:
    done = oci_info(encode(options))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"io.taskd.oci.v1: {words}"


def oci_info(given: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "import taskd_oci; taskd_oci.main()", "-info"]
    return subprocess.run(command, input=given, capture_output=True, timeout=30, check=False)


def test_bad_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err, _ = run(capsys, "-id", "one", "start")
    assert (status, err) == (1, f"{NAME}: shim namespace cannot be empty\n")
    status, _, err, _ = run(capsys, "-namespace", "x", "-id", "one", "dance")
    assert (status, err) == (1, f"{NAME}: unknown command dance\n")
    status, _, err, _ = run(capsys, "-bogus")
    assert status == 2
    assert err.startswith(f"{NAME}: flag provided but not defined: -bogus\nusage: ")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    status, out, err, _ = run(capsys, flag)
    assert (status, err) == (0, "")
    assert f"usage: {NAME} [flags]" in out
    assert "  -namespace " in out


@pytest.mark.parametrize(
    "words",
    [
        ["-namespace", "n", "-id", "i", "-debug", "start"],
        ["--namespace", "n", "--id", "i", "--debug", "start"],
        ["-namespace=n", "--id=i", "-debug=true", "start"],
        ["-id", "none", "-debug=0", "-id", "i", "--debug=T", "--namespace=n", "--", "start", "-id"],
    ],
)
def test_flags(words: list[str]) -> None:
    flags = Flags(NAME, words)
    assert (flags.namespace, flags.id, flags.debug, flags.action) == ("n", "i", True, "start")
    assert (flags.address, flags.socket, flags.info, flags.version) == ("", "", False, False)
    assert flags.program == "containerd-shim-thing-v3"


def test_values_of_flags_are_anything() -> None:
    flags = Flags(NAME, ["-id", "-v", "-address=a=b", "-namespace", "", "-socket=", "-", "delete"])
    assert (flags.id, flags.address, flags.version) == ("-v", "a=b", False)
    assert (flags.namespace, flags.socket, flags.action) == ("", "", "-")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-bogus=1", "start"], "flag provided but not defined: -bogus"),
        (["---id", "x"], "bad flag syntax: ---id"),
        (["-=x"], "bad flag syntax: -=x"),
        (["-id"], "flag needs an argument: -id"),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
    ],
)
def test_bad_flags(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        Flags(NAME, words)
