"""How connections and servers begin and end."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from conftest import Wires
from ttrpc_peer import PATIENCE, Peer, call

from taskd.errors import Code, TaskdError, Unavailable
from taskd.ttrpc import CallContext, Client, ConnectionClosed, Server, Service
from taskd.ttrpc.address import socket_name

Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def echo(context: CallContext, payload: bytes) -> bytes:
    return payload


class Held:
    """A handler that is held up until it is released."""

    def __init__(self) -> None:
        self.calls = 0
        self.release = asyncio.Event()

    async def __call__(self, context: CallContext, payload: bytes) -> bytes:
        self.calls += 1
        await self.release.wait()
        return payload


ECHO = Service("test", {"Echo": echo})


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/run/x.sock", "/run/x.sock"),
        ("unix:///run/x.sock", "/run/x.sock"),
        ("relative.sock", "relative.sock"),
        ("@abstract", "\0abstract"),
        ("\0abstract", "\0abstract"),
        ("unix://@abstract", "\0abstract"),
        ("unix://\0abstract", "\0abstract"),
    ],
)
def test_address(address: str, name: str) -> None:
    assert socket_name(address) == name


class TestConnect:
    @pytest.mark.parametrize("form", ["{path}", "unix://{path}", "@{name}", "\0{name}"])
    async def test_forms(self, tmp_path: Path, form: str) -> None:
        address = form.format(path=tmp_path / "s", name=f"taskd-test-{secrets.token_hex(8)}")
        async with Server([ECHO]) as server:
            await server.start(address)
            client = await Client.connect(address, timeout=PATIENCE)
            assert await client.call("test", "Echo", b"a") == b"a"
            await client.aclose()
        assert not (tmp_path / "s").exists()

    async def test_to_a_path_object(self, tmp_path: Path) -> None:
        async with Server([ECHO]) as server:
            await server.start(tmp_path / "s")
            client = await Client.connect(str(tmp_path / "s"))
            assert await client.call("test", "Echo", b"a") == b"a"
            await client.aclose()

    async def test_nobody_there(self, tmp_path: Path) -> None:
        address = f"unix://{tmp_path}/none"
        with pytest.raises(Unavailable) as caught:
            await Client.connect(address, timeout=1)
        assert caught.value.message == (
            f"connecting to {address}: No such file or directory: unavailable"
        )

    async def test_path_that_is_too_long(self) -> None:
        with pytest.raises(Unavailable, match="connecting to /xxx"):
            await Client.connect("/" + "x" * 200)

    @pytest.mark.parametrize("later", [False, True])
    async def test_full_backlog(self, tmp_path: Path, later: bool) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(0)
            listener.setblocking(False)
            first = await Client.connect(path, timeout=1)
            second = asyncio.create_task(Client.connect(path, timeout=5 if later else 0.1))
            await asyncio.sleep(0.05)
            assert not second.done()
            if later:
                listener.accept()[0].close()
                await (await second).aclose()
            else:
                with pytest.raises(Unavailable, match=r"no answer in 0\.1 s"):
                    await second
            await first.aclose()


class TestClientCloses:
    async def test_calls_under_way_fail(self, wires: Wires, until: Until) -> None:
        held = Held()
        client, _ = await wires.both(Held=held)
        calls = [asyncio.create_task(client.call("test", "Held", b"")) for _ in range(3)]
        await until(lambda: held.calls == 3)
        watcher = asyncio.create_task(client.wait_closed())
        assert not client.closed
        await client.aclose()
        await client.aclose()
        for one in calls:
            with pytest.raises(ConnectionClosed, match="ttrpc: closed"):
                await one
        await watcher
        assert client.closed
        with pytest.raises(ConnectionClosed):
            await client.call("test", "Held", b"", timeout=1)

    async def test_server_goes(self, wires: Wires, until: Until) -> None:
        client, peer = await wires.client()
        doomed = asyncio.create_task(client.call("test", "Echo", b"", timeout=60))
        await peer.request()
        watchers = [asyncio.create_task(client.wait_closed()) for _ in range(2)]
        watchers[0].cancel()
        await peer.aclose()
        with pytest.raises(ConnectionClosed):
            await doomed
        await asyncio.wait_for(watchers[1], PATIENCE)
        assert client.closed

    async def test_while_the_server_does_not_read(self, wires: Wires) -> None:
        client, _peer = await wires.client()
        calls = [
            asyncio.create_task(client.call("test", "Echo", bytes(1 << 20), timeout=60))
            for _ in range(8)
        ]
        await asyncio.sleep(0.05)
        assert sum(map(len, (client._calls,))) < len(calls)  # The others wait to be written.
        await asyncio.wait_for(client.aclose(), PATIENCE)
        for one in calls:
            with pytest.raises(ConnectionClosed):
                await one

    async def test_server_that_does_not_read_is_waited_for_until_the_deadline(
        self, wires: Wires
    ) -> None:
        client, _peer = await wires.client()
        results = await asyncio.gather(
            *(client.call("test", "Echo", bytes(1 << 20), timeout=0.1) for _ in range(8)),
            return_exceptions=True,
        )
        assert {getattr(result, "code", None) for result in results} == {Code.DEADLINE_EXCEEDED}
        assert not client._calls
        assert not client._connection.streams


class TestServerCloses:
    async def test_calls_under_way_may_finish(self, wires: Wires, until: Until) -> None:
        held = Held()
        client, server = await wires.both(Held=held, Echo=echo)
        under_way = asyncio.create_task(client.call("test", "Held", b"done"))
        await until(lambda: held.calls == 1)
        closing = asyncio.create_task(server.aclose(grace=PATIENCE))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="ttrpc: server closed"):
            await client.call("test", "Echo", b"")
        held.release.set()
        assert await under_way == b"done"
        await closing
        await asyncio.wait_for(client.wait_closed(), PATIENCE)

    @pytest.mark.parametrize("grace", [0.0, 0.05])
    async def test_others_are_cancelled(self, wires: Wires, until: Until, grace: float) -> None:
        held = Held()
        client, server = await wires.both(Held=held)
        under_way = asyncio.create_task(client.call("test", "Held", b""))
        await until(lambda: held.calls == 1)
        await asyncio.gather(server.aclose(grace), server.aclose(grace))
        with pytest.raises(ConnectionClosed):
            await under_way
        assert not server._tasks
        assert not server._sessions
        await server.aclose()

    async def test_last_answer_is_written_out(self, wires: Wires) -> None:
        big = bytes(3 << 20)

        async def answer(context: CallContext, payload: bytes) -> bytes:
            return big

        peer, server = await wires.server(Answer=answer)
        await peer.write(call(1, "Answer"))
        while not server._tasks:
            await asyncio.sleep(0)
        closing = asyncio.create_task(server.aclose(grace=PATIENCE))
        assert (await peer.response())[1].payload == big
        await closing

    async def test_client_that_does_not_read_is_not_waited_for(self, wires: Wires) -> None:
        async def answer(context: CallContext, payload: bytes) -> bytes:
            return bytes(3 << 20)

        _peer, server = await wires.server(Answer=answer)
        await _peer.write(call(1, "Answer"))
        while not server._tasks:
            await asyncio.sleep(0)
        await asyncio.wait_for(server.aclose(grace=PATIENCE), PATIENCE)
        assert not server._sessions

    async def test_accepts_nothing_more(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        server = Server([ECHO])
        await server.start(path)
        await server.aclose()
        with pytest.raises(Unavailable):
            await Client.connect(path, timeout=1)


async def test_listening_socket_and_connected_sockets(wires: Wires, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        async with Server([ECHO]) as server:
            await server.start(listener)
            ours, theirs = socket.socketpair()
            await server.serve_connection(ours)
            clients = [
                await Client.from_socket(theirs),
                await Client.connect(str(tmp_path / "s")),
            ]
            for client in clients:
                assert await client.call("test", "Echo", b"a") == b"a"
                await client.aclose()
    # A socket that was handed to the server is not the server's to remove.
    assert (tmp_path / "s").exists()


async def test_address_in_use(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    async with Server([ECHO]) as server:
        with pytest.raises(OSError, match="Address already in use"):
            await server.start(tmp_path / "s")
    assert (tmp_path / "s").exists()


def test_services_have_distinct_names() -> None:
    with pytest.raises(ValueError, match="duplicate service test"):
        Server([ECHO, ECHO])


async def test_server_outlives_bad_clients(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with Server([ECHO]) as server:
        await server.start(path)
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(path)
                bad.send(os.urandom(64))
            peer = await Peer.on(_connected(path))
            await peer.write(call(1, payload=b"a")[:7])
            await peer.aclose()
        client = await Client.connect(path)
        assert await client.call("test", "Echo", b"a") == b"a"
        await client.aclose()


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    held = Held()
    path = str(tmp_path / "s")
    before, tasks = descriptors(), asyncio.all_tasks()
    server = Server([Service("test", {"Echo": echo, "Held": held})])
    await server.start(path)
    for number in range(20):
        client = await Client.connect(path)
        await client.call("test", "Echo", b"", timeout=PATIENCE)
        doomed = asyncio.create_task(client.call("test", "Held", b"", timeout=60))
        await asyncio.sleep(0.001)
        if number % 2:
            doomed.cancel()
        await client.aclose()
        with pytest.raises((TaskdError, asyncio.CancelledError)):
            await doomed
        with pytest.raises(Unavailable):
            await Client.connect(f"{path}.none")
    await server.aclose()
    assert asyncio.all_tasks() == tasks
    assert descriptors() == before
