"""Events in a JetStream of a real NATS server: each of them once, whatever ends in between."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import nats
import pytest
import trustme
from harness.daemons import Taskd, client
from harness.nats import NatsServer, connection, positions, settings, stored
from harness.real import need
from harness.shell import COMMAND
from nats.js.api import StreamConfig

from taskd import events
from taskd.codec import decode
from taskd.events import Bus, Journal
from taskd.nats.settings import CURSOR, NatsConfig
from taskd.nats.sink import NatsSink
from taskd.proto.containerd.services.events.v1 import EventsStub, PublishRequest
from taskd.proto.containerd.types import Envelope
from taskd.proto.google.protobuf import Any
from taskd.proto.taskd.v1 import InfoRequest, JournalStub
from taskd.types import TypedValue

EVENT = Any(type_url="a.Type", value=b"data")
HAPPENED = events.Envelope(1, "default", "/a", TypedValue("a.Type", b"data"))


@pytest.fixture
def server(folder: Path) -> Iterator[NatsServer]:
    need("nats-server")
    with NatsServer(folder / "nats") as running:
        yield running


async def publish(daemon: Taskd, count: int, topic: str = "/a", value: bytes = b"data") -> None:
    async with client(daemon.address, "default") as channel:
        stub = EventsStub(channel)
        event = Any(type_url="a.Type", value=value)
        for _ in range(count):
            await stub.publish(PublishRequest(topic=topic, event=event))


async def last(daemon: Taskd) -> int:
    async with client(daemon.address, "default") as channel:
        return (await JournalStub(channel).info(InfoRequest())).last


async def complete(server: NatsServer, daemon: Taskd, node: str = "one") -> list[int]:
    """Positions in the stream, once the newest event of the daemon is there."""
    newest = await last(daemon)
    deadline = time.monotonic() + 30
    while True:
        try:
            found = positions(await stored(server), node)
        except nats.js.errors.NotFoundError:
            found = []
        if newest in found or time.monotonic() > deadline:
            return found
        await anyio.sleep(0.1)


def all_of(newest: int) -> list[int]:
    return list(range(1, newest + 1))


async def test_an_event_arrives(server: NatsServer, folder: Path) -> None:
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        await publish(daemon, 1, "/tasks/exit.now")
        assert await complete(server, daemon) == [1]
    [message] = await stored(server)
    assert message.subject == "taskd.one.default.tasks.exit%2Enow"
    envelope = decode(Envelope, message.data)
    assert (envelope.namespace, envelope.topic) == ("default", "/tasks/exit.now")
    assert envelope.event == EVENT


async def test_what_happened_before_there_was_nats_arrives(
    server: NatsServer, folder: Path
) -> None:
    with Taskd(folder / "taskd") as daemon:
        await publish(daemon, 300)
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        assert await complete(server, daemon) == all_of(300)


async def test_the_daemon_is_killed(server: NatsServer, folder: Path) -> None:
    """While events flow; the server's own recognition of repeats does not help."""
    await make_stream(server)
    daemon = Taskd(folder / "taskd", settings=settings(server))
    for _ in range(10):
        daemon.start()
        await publish(daemon, random.randint(20, 100))
        with anyio.move_on_after(random.uniform(0, 0.5)):
            await publish(daemon, 10_000)
        daemon.kill()
        await anyio.sleep(0.3)
    with daemon:
        newest = await last(daemon)
        assert newest >= 200
        assert await complete(server, daemon) == all_of(newest)


async def test_the_server_is_killed(server: NatsServer, folder: Path) -> None:
    await make_stream(server)
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        async with anyio.create_task_group() as group:
            group.start_soon(publish, daemon, 3000)
            for _ in range(5):
                await anyio.sleep(random.uniform(0.1, 0.5))
                server.kill()
                await anyio.sleep(0.3)
                server.start()
        newest = await last(daemon)
        assert newest == 3000
        assert await complete(server, daemon) == all_of(newest)


async def test_no_answer_for_longer_than_repeats_are_recognised(
    server: NatsServer, folder: Path
) -> None:
    """The answers are lost, not the events: only the stream knows of them."""
    await make_stream(server)
    async with silencing(server) as proxy:
        text = settings(server).replace(str(server.port), str(proxy.port))
        with Taskd(folder / "taskd", settings=text) as daemon:
            await publish(daemon, 10)
            assert await complete(server, daemon) == all_of(10)
            proxy.silent = True
            await publish(daemon, 10)
            with anyio.fail_after(30):
                while len(positions(await stored(server))) <= 10:
                    await anyio.sleep(0.05)
            await anyio.sleep(1.5)
            proxy.hang_up()
            proxy.silent = False
            await publish(daemon, 10)
            assert await complete(server, daemon) == all_of(30)


async def test_there_is_no_server(folder: Path) -> None:
    """Neither start-up nor calls nor the end wait for it."""
    need("nats-server")
    server = NatsServer(folder / "nats")
    began = time.monotonic()
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        await publish(daemon, 100)
        await anyio.sleep(1)
        assert daemon.stop() == 0
    assert time.monotonic() - began < 30
    words = daemon.log.read_text()
    assert words.count("NATS: events wait in the journal: no NATS server at") == 1
    with server, daemon:
        assert await complete(server, daemon) == all_of(100)


async def test_a_server_that_accepts_and_says_nothing(folder: Path) -> None:
    async with silencing(None) as proxy:
        proxy.silent = True
        text = f'[events.nats]\nservers = ["nats://127.0.0.1:{proxy.port}"]\n'
        with Taskd(folder / "taskd", settings=text) as daemon:
            await publish(daemon, 10)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 5


@asynccontextmanager
async def publishing(path: Path, server: NatsServer) -> AsyncIterator[Journal]:
    """A journal whose events go to the server."""
    with Journal(path) as journal:
        async with anyio.create_task_group() as group:
            sink = NatsSink(NatsConfig((server.url,)), "one", journal, Bus(journal))
            group.start_soon(sink.run)
            yield journal
            group.cancel_scope.cancel()


async def until_all_is_there(journal: Journal) -> None:
    with anyio.fail_after(30):
        while journal.cursor(CURSOR) != journal.last:
            await anyio.sleep(0.05)


async def test_what_is_stored_is_noted_though_nothing_follows(
    server: NatsServer, folder: Path
) -> None:
    async with publishing(folder / "events.db", server) as journal:
        for count in (1, 3):
            for _ in range(count):
                await journal.append(HAPPENED)
            await until_all_is_there(journal)
    assert len(await stored(server)) == 4


@pytest.mark.parametrize("mark", [True, False])
async def test_the_journal_goes_back_to_an_earlier_state(
    server: NatsServer, folder: Path, mark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a power cut; or from a backup, which it does not notice by itself."""
    path = folder / "events.db"

    async def append(journal: Journal, what: str) -> None:
        for number in range(3):
            await journal.append(HAPPENED._replace(topic=f"/{what}/{number}"))

    async with publishing(path, server) as journal:
        name = journal.id
        await append(journal, "kept")
        await until_all_is_there(journal)
        await journal.tidy()
        earlier = path.read_bytes()
        await append(journal, "lost")
        await until_all_is_there(journal)
    path.write_bytes(earlier)
    if not mark:
        path.with_suffix(".mark").unlink()
        monkeypatch.setattr("taskd.events.mark._AHEAD", 0)
    async with publishing(path, server) as journal:
        assert journal.last == (6 if mark else 3)
        await append(journal, "new")
        await until_all_is_there(journal)
        await append(journal, "newer")
        await until_all_is_there(journal)
        assert (journal.id == name) is mark
        assert journal.last > 6
    found = [message.subject.partition("default.")[2] for message in await stored(server)]
    wanted = ("kept", "lost", "new", "newer")
    assert found == [f"{what}.{number}" for what in wanted for number in range(3)]


async def test_two_nodes_and_one_reader(server: NatsServer, folder: Path) -> None:
    with (
        Taskd(folder / "one", settings=settings(server, "one")) as one,
        Taskd(folder / "two", settings=settings(server, "two.example")) as two,
    ):
        await asyncio.gather(publish(one, 50), publish(two, 40, "/b"))
        assert await complete(server, one) == all_of(50)
        assert await complete(server, two, "two.example") == all_of(40)
        lines = read_fleet(server)
        assert len(lines) == 90
        found = [json.loads(line) for line in read_fleet(server, "--json", 'topic=="/b"')]
        assert [each["position"] for each in found] == all_of(40)
        assert {(each["node"], each["type"]) for each in found} == {("two.example", "a.Type")}
        assert read_fleet(server, "--since", "0s") == []
        assert len(read_fleet(server, "--since", "1h")) == 90


async def test_a_reader_outlives_the_server(server: NatsServer, folder: Path) -> None:
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        await publish(daemon, 1)
        await complete(server, daemon)
        reader = await asyncio.create_subprocess_exec(
            *fleet_command(server, "--reconnect", "--json", "--since", "1h"),
            stdout=subprocess.PIPE,
        )
        assert reader.stdout is not None
        found = []
        try:
            for number in range(1, 5):
                with anyio.fail_after(30):
                    found.append(json.loads(await reader.stdout.readline())["position"])
                server.kill()
                if number < 4:
                    await publish(daemon, 1)
                    server.start()
        finally:
            reader.kill()
            await reader.communicate()
        assert found == [1, 2, 3, 4]


def test_reading_without_a_server_or_a_stream(server: NatsServer) -> None:
    done = subprocess.run(fleet_command(server), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "taskd: stream TASKD: not found\n")
    server.kill()
    done = subprocess.run(fleet_command(server), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"no NATS server at {server.url}" in done.stderr


async def test_an_event_that_is_too_large(server: NatsServer, folder: Path) -> None:
    """It is named in the log; those behind it do not wait for it."""
    await make_stream(server, max_msg_size=100_000)
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        await publish(daemon, 1)
        await publish(daemon, 1, value=bytes(200_000))
        await publish(daemon, 1, value=bytes(2_000_000))
        await publish(daemon, 1)
        assert await complete(server, daemon) == [1, 4]
    words = daemon.log.read_text()
    assert "NATS: event 2 (taskd.one.default.a) is lost" in words
    assert "NATS: event 3 (taskd.one.default.a) is lost" in words


async def test_a_stream_that_does_not_fit(server: NatsServer, folder: Path) -> None:
    async with connection(server) as connected:
        await connected.jetstream().add_stream(StreamConfig("TASKD", subjects=["x"]))
    with Taskd(folder / "taskd", settings=settings(server)) as daemon:
        await publish(daemon, 1)
        reason = "stream TASKD does not take subject taskd.one.default.a"
        await until_logged(daemon, reason)
        async with connection(server) as connected:
            await connected.jetstream().update_stream(
                StreamConfig("TASKD", subjects=["x", "taskd.>"])
            )
        assert await complete(server, daemon) == [1]
    assert daemon.log.read_text().count(reason) == 1


async def test_retention_has_overtaken_it(folder: Path) -> None:
    need("nats-server")
    server = NatsServer(folder / "nats")
    text = settings(server).replace("[events]\n", '[events]\nmax_size = "1MiB"\n')
    with Taskd(folder / "taskd", settings=text) as daemon:
        await publish(daemon, 100, value=bytes(50_000))
        async with client(daemon.address, "default") as channel:
            stub = JournalStub(channel)
            with anyio.fail_after(30):
                while (first := (await stub.info(InfoRequest())).first) == 1:
                    await anyio.sleep(0.1)
        with server:
            await publish(daemon, 1)
            found = await complete(server, daemon)
        assert found[0] >= first
        assert found == list(range(found[0], 102))
    assert f"the events from 1 to {found[0] - 1} are lost" in daemon.log.read_text()


async def test_tls_and_password(folder: Path) -> None:
    need("nats-server")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    mine = authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    mine.cert_chain_pems[0].write_to_path(folder / "mine.pem")
    mine.private_key_pem.write_to_path(folder / "mine.key")
    (folder / "password").write_text("secret\n")
    server = NatsServer(
        folder / "nats",
        f'tls {{ cert_file: "{folder}/cert.pem", key_file: "{folder}/key.pem", '
        f'ca_file: "{folder}/ca.pem", verify: true }}\n'
        "authorization { user: taskd, password: secret }\n",
    )
    text = (
        f'[events.nats]\nservers = ["tls://127.0.0.1:{server.port}"]\n'
        f'tls_ca = "{folder}/ca.pem"\ntls_cert = "{folder}/mine.pem"\n'
        f'tls_key = "{folder}/mine.key"\nuser = "taskd"\npassword_file = "{folder}/password"\n'
    )
    config = folder / "reader.toml"
    config.write_text(text)
    command = [*COMMAND, "events", "--no-follow", "--config", str(config)]
    with server, Taskd(folder / "taskd", settings=text) as daemon:
        await publish(daemon, 3)
        with anyio.fail_after(20):
            while True:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.stdout.count("\n") == 3:
                    break
                await anyio.sleep(0.2)
        (folder / "password").write_text("wrong")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Authorization" in done.stderr


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "events: nats: servers: is missing"),
        ("servers = []", "events: nats: servers: [] is not a list of servers"),
        ('servers = ["x"]', "events: nats: servers: 'x' is not a URL"),
        ('servers = ["nats://x"]\nsubject = "x"', "events: nats: subject: 'x' does not end with"),
        ('servers = ["nats://x"]\nstream = "a.b"', "events: nats: stream: 'a.b' is not the name"),
        ('servers = ["nats://x"]\ntls_key = "/x"', "events: nats: tls_key: tls_cert is missing"),
        ('servers = ["nats://x"]\nwhere = 1', "events: nats: where: unknown key"),
    ],
)
def test_bad_settings(folder: Path, line: str, reason: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        Taskd(folder / "taskd", settings=f"[events.nats]\n{line}\n").start()
    assert reason in str(caught.value)


def fleet_command(server: NatsServer, *arguments: str) -> list[str]:
    return [*COMMAND, "events", "--nats", server.url, *arguments]


def read_fleet(server: NatsServer, *arguments: str) -> list[str]:
    command = fleet_command(server, "--no-follow", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def make_stream(server: NatsServer, **options: object) -> None:
    """As taskd makes it, but one that forgets the ids of messages at once."""
    async with connection(server) as connected:
        await connected.jetstream().add_stream(
            StreamConfig("TASKD", subjects=["taskd.*.*.>"], duplicate_window=0.1, **options)
        )


async def until_logged(daemon: Taskd, words: str) -> None:
    with anyio.fail_after(20):
        while words not in daemon.log.read_text():
            await anyio.sleep(0.05)


class Proxy:
    """Stands before a server, and can keep to itself what the server says."""

    def __init__(self) -> None:
        self.port = 0
        self.silent = False
        self.writers: list[asyncio.StreamWriter] = []

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@asynccontextmanager
async def silencing(server: NatsServer | None) -> AsyncIterator[Proxy]:
    proxy = Proxy()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        while data := await reader.read(65536):
            if not (back and proxy.silent):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.writers.append(writer)
        if server is None:
            return
        there = await asyncio.open_connection("127.0.0.1", server.port)
        proxy.writers.append(there[1])
        await asyncio.gather(
            copy(reader, there[1], False), copy(there[0], writer, True), return_exceptions=True
        )

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        proxy.hang_up()
