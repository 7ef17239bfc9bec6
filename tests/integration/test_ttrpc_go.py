"""Our ttrpc against Go's: our client calls a real shim, whose events come to our server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import betterproto2
import pytest
from harness.containers import spec
from harness.generations import GENERATIONS
from harness.real import need

from taskd import ttrpc
from taskd.codec import decode, encode
from taskd.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unimplemented
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.containerd.task import v2 as api
from taskd.ttrpc import frames
from taskd.ttrpc.address import dial
from taskd.ttrpc.messages import Request, Response

SHIM = "containerd-shim-runc-v2"
TASK = "containerd.task.v2.Task"


class Events:
    """What the shim's publisher sends."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    async def forward(self, context: ttrpc.CallContext, payload: bytes) -> bytes:
        request = decode(ForwardRequest, payload)
        assert request.envelope is not None
        assert request.envelope.timestamp is not None
        self.topics.append(request.envelope.topic)
        return b""


@asynccontextmanager
async def shim(
    folder: Path, namespace: str, rootfs: Path, program: str = SHIM
) -> AsyncIterator[tuple[ttrpc.Client, Events, Path]]:
    """A real shim, started as a daemon would."""
    need(SHIM, "runc")
    bundle = folder / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_bytes(spec(rootfs, ["/bin/sleep", "1000"]).value)
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    events = Events()
    name = "containerd.services.events.ttrpc.v1.Events"
    server = ttrpc.Server([ttrpc.Service(name, {"Forward": events.forward})])
    await server.start(str(folder / "d.sock.ttrpc"))
    flags = ["-namespace", namespace, "-id", "one", "-address", str(folder / "d.sock")]
    started = await asyncio.to_thread(
        subprocess.run,
        [program, *flags, "-publish-binary", "/bin/true", "start"],
        cwd=bundle,
        env=os.environ | {"TTRPC_ADDRESS": str(folder / "d.sock.ttrpc")},
        capture_output=True,
        check=True,
        timeout=20,
    )
    address = started.stdout.decode().strip()
    client = await ttrpc.Client.connect(address, timeout=5)
    try:
        yield client, events, bundle
    finally:
        with suppress(ttrpc.ConnectionClosed):
            await client.call(TASK, "Shutdown", encode(api.ShutdownRequest(id="one")), timeout=5)
        with anyio.fail_after(5):
            while Path(address.removeprefix("unix://")).exists():
                await anyio.sleep(0.01)
        await client.aclose()
        await server.aclose()
        os.close(log)


async def test_calls_and_events_of_a_whole_life(folder: Path, namespace: str, rootfs: Path) -> None:
    async with shim(folder, namespace, rootfs) as (client, events, bundle):

        async def ask(method: str, request: betterproto2.Message) -> bytes:
            return await client.call(TASK, method, encode(request), timeout=20)

        create = api.CreateTaskRequest(id="one", bundle=str(bundle))
        pid = decode(api.CreateTaskResponse, await ask("Create", create)).pid
        assert decode(api.StartResponse, await ask("Start", api.StartRequest(id="one"))).pid == pid
        waiting = asyncio.create_task(ask("Wait", api.WaitRequest(id="one")))
        state = decode(api.StateResponse, await ask("State", api.StateRequest(id="one")))
        assert (state.pid, state.status) == (pid, 2)
        await ask("Kill", api.KillRequest(id="one", signal=9))
        assert decode(api.WaitResponse, await waiting).exit_status == 137
        found = decode(api.DeleteResponse, await ask("Delete", api.DeleteRequest(id="one")))
        assert (found.pid, found.exit_status) == (pid, 137)
        with anyio.fail_after(5):
            while len(events.topics) < 4:
                await anyio.sleep(0.01)
        assert events.topics == [f"/tasks/{what}" for what in ("create", "start", "exit", "delete")]


async def test_errors_and_many_calls_at_once(folder: Path, namespace: str, rootfs: Path) -> None:
    async with shim(folder, namespace, rootfs) as (client, _, _):
        connect = encode(api.ConnectRequest(id="one"))
        with pytest.raises(NotFound):
            await client.call(TASK, "State", encode(api.StateRequest(id="nobody")))
        with pytest.raises(Unimplemented):
            await client.call(TASK, "Fly", b"")
        with pytest.raises(Unimplemented):
            await client.call("no.such.Service", "Connect", b"")
        answers = await asyncio.gather(
            *(client.call(TASK, "Connect", connect, timeout=10) for _ in range(200))
        )
        pids = {decode(api.ConnectResponse, answer).shim_pid for answer in answers}
        assert len(pids) == 1


async def test_an_oversized_request_and_a_deadline_leave_the_connection(
    folder: Path, namespace: str, rootfs: Path
) -> None:
    async with shim(folder, namespace, rootfs) as (client, _, bundle):
        with pytest.raises(ResourceExhausted):
            await client.call(TASK, "Connect", bytes(5 << 20))
        create = encode(api.CreateTaskRequest(id="one", bundle=str(bundle)))
        await client.call(TASK, "Create", create, timeout=20)
        with pytest.raises(DeadlineExceeded):
            await client.call(TASK, "Wait", encode(api.WaitRequest(id="one")), timeout=0.1)
        await client.call(TASK, "Connect", encode(api.ConnectRequest(id="one")), timeout=5)
        await client.call(TASK, "Kill", encode(api.KillRequest(id="one", signal=9)), timeout=5)
        await client.call(TASK, "Wait", encode(api.WaitRequest(id="one")), timeout=5)
        await client.call(TASK, "Delete", encode(api.DeleteRequest(id="one")), timeout=5)


_, _RECENT, _ = GENERATIONS

STATE = Request(TASK, "State", encode(api.StateRequest(id="nobody")))


@pytest.mark.parametrize(
    ("calls", "answers"),
    [
        pytest.param([(1, 1, replace(STATE, payload=b"\xff" * 9))], 1, id="no payload"),
        pytest.param([(1, 1, replace(STATE, payload=b"\x0a\x02x"))], 1, id="half a payload"),
        pytest.param([(1, 1, None)], 1, id="no request"),
        pytest.param([(2, 1, STATE), (0, 1, STATE)], 2, id="even ids"),
        pytest.param([(3, 1, STATE), (3, 1, STATE), (1, 1, STATE)], 3, id="ids that do not grow"),
        pytest.param([(1, 2, STATE), (1, 7, STATE)], 0, id="what a client does not send"),
        pytest.param([(1, 1, replace(STATE, timeout_nano=-1))], 1, id="a negative timeout"),
        pytest.param([(1, 1, replace(STATE, method="Fly"))], 1, id="an unknown method"),
        pytest.param([(1, 1, replace(STATE, service="no.such"))], 1, id="an unknown service"),
    ],
)
async def test_our_server_answers_as_gos(
    folder: Path,
    namespace: str,
    rootfs: Path,
    calls: list[tuple[int, int, Request | None]],
    answers: int,
) -> None:
    """The next call is answered too, on the same connection."""
    last = (99, 1, STATE)
    wire = b"".join(
        frames.encode(stream_id, kind, 0, b"\xff" if request is None else request.encode())
        for stream_id, kind, request in (*calls, last)
    )

    async def state(context: ttrpc.CallContext, payload: bytes) -> bytes:
        ttrpc.unmarshal(api.StateRequest, payload)
        raise NotFound("container not created")

    address = str(folder / "ours")
    async with ttrpc.Server([ttrpc.Service(TASK, {"State": state})]) as server:
        await server.start(address)
        ours = await _answers(address, wire, answers + 1)
    # 1.6's takes an id that is lower than the last.
    program = str((_RECENT.binaries() or Path()) / SHIM)
    async with shim(folder, namespace, rootfs, program) as (_, _, bundle):
        assert ours == await _answers((bundle / "address").read_text(), wire, answers + 1)


async def _answers(address: str, wire: bytes, count: int) -> list[tuple[int, int, str]]:
    """Stream, status and message of each answer, but for the words of a parser."""
    reader, writer = await asyncio.open_unix_connection(sock=await dial(address, timeout=5))
    writer.write(wire)
    decoder = frames.Decoder()
    found: list[tuple[int, int, str]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            data = await reader.read(1 << 16)
            assert data, f"the connection ended after {found}"
            for frame in decoder.feed(data):
                assert isinstance(frame, frames.Frame)
                response = Response.decode(frame.payload)
                words = re.sub("(error( unmarshalling payload)?): .*", r"\1", response.message)
                found.append((frame.stream_id, response.code, words))
    writer.close()
    return sorted(found)
