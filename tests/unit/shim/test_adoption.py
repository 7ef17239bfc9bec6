"""A shim is killed, and another one goes on with its containers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from taskd import slots, ttrpc
from taskd.codec import decode, encode
from taskd.proto.containerd.runtime.sandbox import v1 as sandbox_api
from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import Empty
from taskd.runtime.store import DescriptorStore
from taskd.runtime.types import Key
from taskd.shim import record
from taskd.shim.process import Status

PROCESS = Path(sys.executable).with_name("containerd-shim-process-v1")
_ANSWERS = {
    "Create": api.CreateTaskResponse,
    "Start": api.StartResponse,
    "Delete": api.DeleteResponse,
    "State": api.StateResponse,
    "Wait": api.WaitResponse,
}
_REQUESTS = {
    "Create": "CreateTaskRequest",
    "Exec": "ExecProcessRequest",
    "CloseIO": "CloseIoRequest",
}


class Shim:
    """The shim of one container, and the store of its daemon."""

    def __init__(self, folder: Path, store: DescriptorStore) -> None:
        self.folder = folder
        self.store = store
        self.bundle = folder / "one"
        self.bundle.mkdir()
        self.stdout = folder / "stdout"
        os.mkfifo(self.stdout)
        self.output = os.open(self.stdout, os.O_RDONLY | os.O_NONBLOCK)

    def _call(self, action: str, given: bytes = b"") -> None:
        flags = ["-namespace", "testing", "-id", "one", "-address", str(self.folder / "sock")]
        env = {slots.ADDRESS: str(self.folder / "store"), "XDG_RUNTIME_DIR": str(self.folder)}
        subprocess.run(
            [PROCESS, *flags, action],
            cwd=self.bundle,
            env=os.environ | env,
            input=given,
            check=True,
            timeout=30,
            stdout=subprocess.DEVNULL,
        )

    async def start(self, script: str, **process: Any) -> None:
        args = {"args": ["/bin/sh", "-c", script], "env": [f"PATH={os.defpath}"], "cwd": "/"}
        (self.bundle / "config.json").write_text(json.dumps({"process": args | process}))
        await asyncio.to_thread(self._call, "start")

    async def adopt(self, *others: Path) -> None:
        given = json.dumps({"bundles": [*map(str, others), str(self.bundle)]}).encode()
        await asyncio.to_thread(self._call, "adopt", given)

    async def kill(self) -> None:
        pid = (await self.ask("Connect", kind=api.ConnectResponse)).shim_pid
        os.kill(pid, signal.SIGKILL)
        await self.store.left(Key("testing", "one"))

    async def leave(self) -> str:
        """Have it leave; why it stays, if it does."""
        pid = (await self.ask("Connect", kind=api.ConnectResponse)).shim_pid
        keeping = self.store.of(pid)
        assert keeping is not None
        reason = await asyncio.wait_for(self.store.dismiss(keeping), 20)
        if not reason:
            await self.store.left(Key("testing", "one"))
        return reason

    async def ask(self, method: str, kind: Any = Empty, **fields: Any) -> Any:
        client = await ttrpc.Client.connect((self.bundle / "address").read_text())
        request = getattr(api, _REQUESTS.get(method, f"{method}Request"))(**{"id": "one"} | fields)
        if method == "Create":
            request.bundle = str(self.bundle)
        try:
            name = "containerd.task.v3.Task"
            answer = await client.call(name, method, encode(request), timeout=20)
        finally:
            await client.aclose()
        return decode(_ANSWERS.get(method, kind), answer)

    async def ask_sandbox(self, method: str, request: Any, kind: Any = Empty) -> Any:
        client = await ttrpc.Client.connect((self.bundle / "address").read_text())
        try:
            name = "containerd.runtime.sandbox.v1.Sandbox"
            return decode(kind, await client.call(name, method, encode(request), timeout=20))
        finally:
            await client.aclose()

    async def create(self, script: str, *, terminal: bool = False, **process: Any) -> int:
        await self.start(script, **process)
        fields = {"stdout": str(self.stdout), "terminal": terminal}
        return int((await self.ask("Create", **fields)).pid)

    async def read(self, until: bytes) -> bytes:
        found = b""
        async with asyncio.timeout(20):
            while until not in found:
                with suppress(BlockingIOError):
                    found += os.read(self.output, 65536)
                await asyncio.sleep(0.01)
        return found

    async def exec(self, script: str) -> int:
        spec = {"args": ["/bin/sh", "-c", script], "cwd": "/"}
        given = AnyMessage(value=json.dumps(spec).encode())
        await self.ask("Exec", exec_id="two", spec=given)
        return int((await self.ask("Start", exec_id="two")).pid)


@pytest.fixture
async def store(folder: Path) -> AsyncIterator[DescriptorStore]:
    ready: asyncio.Future[DescriptorStore] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(folder / "store"))
            listener.listen()
            async with anyio.create_task_group() as group:
                ready.set_result(DescriptorStore(group))
                await ready.result().serve(listener)

    serving = asyncio.create_task(serve())
    yield await ready
    serving.cancel()
    await asyncio.wait([serving])
    ready.result().close()


@pytest.fixture
async def shim(folder: Path, store: DescriptorStore) -> AsyncIterator[Shim]:
    shim = Shim(folder, store)
    yield shim
    with suppress(Exception):
        await shim.kill()
    command = [PROCESS, "-namespace", "testing", "-id", "one", "delete"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=shim.bundle, capture_output=True, check=False
    )
    os.close(shim.output)
    assert done.returncode == 0


def test_nobody_else_reads_the_record(tmp_path: Path) -> None:
    """In which there are the environments of a container's processes."""
    for number in range(2):  # it is replaced
        whole = record.Record(f"c{number}", "testing", None, "", False, ())
        record.write(tmp_path, whole)
        assert record.read(tmp_path) == whole
        (path,) = tmp_path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_one_that_runs(shim: Shim) -> None:
    pid = await shim.create(
        "trap 'echo ended; exit 7' TERM; echo begun; while :; do sleep 0.01; done"
    )
    await shim.ask("Start")
    await shim.read(b"begun\n")
    await shim.kill()
    assert Path(f"/proc/{pid}").exists()
    await shim.adopt()
    state = await shim.ask("State")
    assert (state.pid, state.status) == (pid, Status.RUNNING)
    await shim.ask("Kill", signal=signal.SIGTERM)
    assert (await shim.ask("Wait")).exit_status == 7
    assert await shim.read(b"ended\n") == b"ended\n"
    assert (await shim.ask("Delete")).exit_status == 7
    assert not shim.store.has(Key("testing", "one"))


async def test_one_that_ends_meanwhile(shim: Shim) -> None:
    """What it has written waits in a FIFO that nobody has open but the store."""
    gate = shim.folder / "gate"
    os.mkfifo(gate)
    pid = await shim.create(f"read line < {gate}; echo the last; exit 8")
    await shim.ask("Start")
    os.close(shim.output)
    await shim.kill()
    gate.write_text("go\n")
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}/exe").exists():
            await asyncio.sleep(0.01)
    await shim.adopt()
    shim.output = os.open(shim.stdout, os.O_RDONLY | os.O_NONBLOCK)
    assert await shim.read(b"last\n") == b"the last\n"
    assert (await shim.ask("Wait")).exit_status == 8
    assert (await shim.ask("State")).status == Status.STOPPED


async def test_one_that_waits_to_be_started(shim: Shim) -> None:
    pid = await shim.create("echo begun; exit 9")
    await shim.kill()
    await shim.adopt()
    assert (await shim.ask("State")).status == Status.CREATED
    assert (await shim.ask("Start")).pid == pid
    assert (await shim.ask("Wait")).exit_status == 9
    assert await shim.read(b"begun\n") == b"begun\n"


async def test_one_that_waits_to_be_started_and_never_is(shim: Shim) -> None:
    pid = await shim.create("echo begun; exit 9")
    await shim.kill()
    await shim.adopt()
    await shim.ask("Delete")
    assert not Path(f"/proc/{pid}/exe").exists()


async def test_a_terminal(shim: Shim) -> None:
    pid = await shim.create("stty -echo; echo begun; while :; do sleep 0.01; done", terminal=True)
    await shim.ask("Start")
    await shim.read(b"begun\r\n")
    await shim.kill()
    await shim.adopt()
    await shim.ask("ResizePty", width=81, height=25)
    terminal = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    os.write(terminal, b"there\n")
    os.close(terminal)
    assert size[:4] == b"\x19\0\x51\0"
    assert await shim.read(b"there\r\n") == b"there\r\n"
    await shim.ask("Kill", signal=signal.SIGHUP)
    assert (await shim.ask("Wait")).exit_status == 128 + signal.SIGHUP


async def test_an_exec_and_a_pause(shim: Shim) -> None:
    await shim.create("exec sleep 1000")
    await shim.ask("Start")
    pid = await shim.exec("while :; do sleep 0.01; done")
    await shim.ask("Pause")
    await shim.kill()
    await shim.adopt()
    state = await shim.ask("State", exec_id="two")
    assert (state.pid, state.status) == (pid, Status.PAUSED)
    await shim.ask("Resume")
    assert (await shim.ask("State")).status == Status.RUNNING
    await shim.ask("Kill", exec_id="two", signal=signal.SIGKILL)
    assert (await shim.ask("Wait", exec_id="two")).exit_status == 137
    await shim.ask("Kill", signal=signal.SIGKILL)
    assert (await shim.ask("Wait")).exit_status == 137


async def test_again_and_again(shim: Shim) -> None:
    pid = await shim.create("while :; do sleep 0.01; done")
    await shim.ask("Start")
    for _ in range(3):
        await shim.kill()
        await shim.adopt()
    assert (await shim.ask("State")).pid == pid


async def test_a_torn_record(shim: Shim) -> None:
    await shim.create("while :; do sleep 0.01; done")
    await shim.ask("Start")
    await shim.kill()
    file = shim.bundle / "shim-record"
    record.read(shim.bundle)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(record.Torn):
        record.read(shim.bundle)
    await shim.adopt()
    with pytest.raises(Exception, match="not found"):
        await shim.ask("State")


async def test_one_that_is_in_a_sandbox(shim: Shim) -> None:
    """Its sandbox is no more."""
    (shim.bundle / "sandbox").write_text("s")
    await shim.create("while :; do sleep 0.01; done")
    await shim.ask("Start")
    await shim.kill()
    await shim.adopt()
    with pytest.raises(Exception, match="not found"):
        await shim.ask("State")


@pytest.fixture
async def told(folder: Path) -> AsyncIterator[list[bytes]]:
    """A daemon that takes events."""
    told: list[bytes] = []

    async def forward(context: ttrpc.CallContext, request: bytes) -> bytes:
        told.append(request)
        return b""

    service = ttrpc.Service("containerd.services.events.ttrpc.v1.Events", {"Forward": forward})
    async with ttrpc.Server([service]) as server:
        await server.start(str(folder / "sock.ttrpc"))
        yield told


async def test_one_that_leaves_what_its_client_has_not_read(shim: Shim, told: list[bytes]) -> None:
    """Of a terminal's output more is under way than the client's FIFO takes."""
    count = 30_000
    await shim.create(f"seq {count}; exec sleep 1000", terminal=True)
    await shim.ask("Start")
    found = await shim.read(b"1\r\n")
    # By then the FIFO is full, as a rule, and more has been read for it.
    await asyncio.sleep(0.5)
    for _ in range(2):
        assert not await shim.leave()
        await shim.adopt()
    assert any(b"TaskStart" in each for each in told)
    found += await shim.read(b"\n%d\r\n" % count)
    assert found.split() == [b"%d" % number for number in range(1, count + 1)]


async def test_one_that_cannot_leave_goes_on(shim: Shim) -> None:
    """Nobody takes its events."""
    pid = await shim.create("stty -echo; echo begun; cat", terminal=True)
    await shim.ask("Start")
    await shim.read(b"begun\r\n")
    assert "has not ended in" in await shim.leave()
    terminal = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    os.write(terminal, b"there\n")
    os.close(terminal)
    assert await shim.read(b"there\r\n") == b"there\r\n"
    assert (await shim.ask("State")).status == Status.RUNNING


async def test_a_sandbox_and_what_is_in_it(shim: Shim) -> None:
    """Both are where they were, but that the sandbox is another process now."""
    room = shim.folder / "room"
    room.mkdir()
    (room / "config.json").write_text("{}")
    script = "trap 'exit 7' TERM; while :; do sleep 0.01; done"
    await shim.start(script)
    (shim.bundle / "sandbox").write_text("room")
    made = sandbox_api.CreateSandboxRequest(sandbox_id="room", bundle_path=str(room))
    await shim.ask_sandbox("CreateSandbox", made)
    await shim.ask_sandbox("StartSandbox", sandbox_api.StartSandboxRequest(sandbox_id="room"))
    asked = sandbox_api.SandboxStatusRequest(sandbox_id="room")
    before = await shim.ask_sandbox("SandboxStatus", asked, sandbox_api.SandboxStatusResponse)
    pid = (await shim.ask("Create")).pid
    await shim.ask("Start")
    await shim.kill()
    await shim.adopt(room)
    after = await shim.ask_sandbox("SandboxStatus", asked, sandbox_api.SandboxStatusResponse)
    new = (await shim.ask("Connect", kind=api.ConnectResponse)).shim_pid
    assert (before.state, before.created_at) == (after.state, after.created_at)
    assert after.pid == new != before.pid
    assert (await shim.ask("State")).pid == pid
    # It ends what is in it, as it always did.
    await shim.ask_sandbox("StopSandbox", sandbox_api.StopSandboxRequest(sandbox_id="room"))
    assert (await shim.ask("Wait")).exit_status == 137
