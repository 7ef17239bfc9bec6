"""The controller of sandboxes, with faults of shims that real ones cannot be made to show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.fake_generation import Connection, World

from taskd import ttrpc
from taskd.codec import encode
from taskd.errors import AlreadyExists, Internal, NotFound, TaskdError, Unknown
from taskd.metadata import Database, Sandbox, SandboxStore
from taskd.proto.containerd.runtime.sandbox import v1 as api
from taskd.runtime import shims as module
from taskd.runtime.binary import Bootstrap
from taskd.runtime.settings import Place, Settings, Timeouts
from taskd.runtime.shims import Shims
from taskd.sandboxes import Controller, Wanted, controller
from taskd.types import TypedValue

SANDBOX = Sandbox("s", "a.shim", spec=TypedValue("spec", b"{}"))
AT = ("ns", "s")


class Speaking(Connection):
    """A connection to a shim that has sandboxes."""

    calls: list[str]
    answers: dict[str, Any]

    async def call(
        self, service: str, method: str, payload: bytes, *, timeout: float | None, metadata: Any
    ) -> bytes:
        assert metadata == {"containerd-namespace-ttrpc": ["ns"]}
        self.calls.append(method)
        answer = self.answers.get(method, b"")
        if isinstance(answer, anyio.Event):
            await answer.wait()
            raise ttrpc.ConnectionClosed
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bus:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def publish(self, namespace: str, topic: str, event: TypedValue) -> None:
        self.told.append(topic)


class Daemon:
    def __init__(self, shims: Shims, place: Place, made: Controller, bus: Bus) -> None:
        self.shims = shims
        self.place = place
        self.controller = made
        self.bus = bus

    @property
    def bundles(self) -> list[str]:
        return [path.name for path in self.place.state.glob("ns/*")]


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    async def connect(bootstrap: Bootstrap, *, timeout: float) -> Connection:
        if not world.reachable:
            raise Unknown("nobody listens")
        return Speaking()

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", (0.01, 0.05, 0.2))
    monkeypatch.setattr(controller, "_GREETING_SECONDS", 0.01)
    Speaking.calls, Speaking.answers = [], {}
    world = World(folder)
    yield world
    for process in world.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SandboxStore]:
    with Database(tmp_path / "metadata.db") as database:
        yield SandboxStore(database)


@asynccontextmanager
async def daemon(world: World, store: SandboxStore) -> AsyncIterator[Daemon]:
    settings = Settings(
        world.folder / "root", world.folder / "state", Timeouts(shutdown=0.2, cleanup=0.5)
    )
    place = Place(world.folder / "s-root", world.folder / "s-state")
    async with anyio.create_task_group() as group:
        shims, bus = Shims(settings, world.generation(), group), Bus()
        made = Controller(
            shims,
            place,
            store,
            bus,
            group,
            lambda namespace, name: name == "taken",  # type: ignore[arg-type]
        )
        yield Daemon(shims, place, made, bus)
        group.cancel_scope.cancel()


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


@pytest.mark.parametrize("where", ["create", "start"])
async def test_a_shim_that_refuses(world: World, store: SandboxStore, where: str) -> None:
    Speaking.answers[f"{where.title()}Sandbox"] = Internal("no room")
    async with daemon(world, store) as d:
        with pytest.raises(Internal, match=f"^failed to {where} sandbox s: no room: internal$"):
            await d.controller.create(*AT[:1], SANDBOX, Wanted())
            await d.controller.start(*AT)
        assert d.bundles == []
        assert not d.controller.has(*AT)
        assert world.asked == ["s"]
        assert world.deleted == ["s"]
        assert Speaking.calls[-1] == "ShutdownSandbox"
        # It can be made anew.
        Speaking.answers.clear()
        await d.controller.create("ns", SANDBOX, Wanted())
        with pytest.raises(AlreadyExists, match="^sandbox s already running: already exists$"):
            await d.controller.create("ns", SANDBOX, Wanted())


async def test_an_id_that_is_a_tasks(world: World, store: SandboxStore) -> None:
    async with daemon(world, store) as d:
        with pytest.raises(AlreadyExists):
            await d.controller.create("ns", Sandbox("taken", "a.shim"), Wanted())
        assert world.processes == {}


async def test_one_that_was_not_created_but_has_a_record(world: World, store: SandboxStore) -> None:
    await store.create("ns", SANDBOX)
    Speaking.answers["StartSandbox"] = encode(api.StartSandboxResponse(pid=7))
    async with daemon(world, store) as d:
        assert (await d.controller.start(*AT)).pid == 7
        assert d.bus.told == ["/sandboxes/create", "/sandboxes/start"]
        with pytest.raises(Unknown, match='^unable to find sandbox "other"$'):
            await d.controller.start("ns", "other")


async def test_a_shim_that_does_not_end_it(
    world: World, store: SandboxStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "_SHUTDOWN_SECONDS", 0.1)
    Speaking.answers["ShutdownSandbox"] = anyio.Event()
    world.agrees = False
    async with daemon(world, store) as d:
        await d.controller.create("ns", SANDBOX, Wanted())
        await d.controller.shutdown(*AT)
        assert (d.bundles, world.runs("s")) == ([], False)
        assert d.bus.told == ["/sandboxes/create", "/tasks/exit", "/tasks/delete"]
        with pytest.raises(NotFound, match="^not found$"):
            await d.controller.shutdown(*AT)


async def test_all_who_wait_are_told_and_one_event(world: World, store: SandboxStore) -> None:
    dies = Speaking.answers["WaitSandbox"] = anyio.Event()
    async with daemon(world, store) as d:
        await d.controller.create("ns", SANDBOX, Wanted())
        found: list[int] = []

        async def wait() -> None:
            found.append((await d.controller.wait(*AT)).status)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await until(lambda: Speaking.calls.count("WaitSandbox") == 3)
            dies.set()
            world.connections["s"].closed.set()
        assert found == [137, 137, 137]
        assert sorted(d.bus.told) == [
            "/sandboxes/create", "/sandboxes/exit", "/tasks/delete", "/tasks/exit",
        ]  # fmt: skip
        assert (d.bundles, world.deleted) == ([], ["s"])
        assert await d.controller.status(*AT, verbose=False) is None


@pytest.mark.parametrize("known", [True, False])
async def test_one_of_an_earlier_daemon(world: World, store: SandboxStore, known: bool) -> None:
    """It is asked until it answers; a shim without it, whose Create was cut short, is ended."""
    async with daemon(world, store) as d:
        await d.controller.create("ns", SANDBOX, Wanted())
    silent: TaskdError = Internal("later")
    Speaking.answers["PingSandbox"] = [silent, silent, b"" if known else NotFound("sandbox s")]
    async with daemon(world, store) as d:
        await d.controller.find()
        assert d.controller.has(*AT)
        d.controller.load()
        await until(lambda: Speaking.calls.count("PingSandbox") >= 3)
        if known:
            await d.controller.stop(*AT, 3)
            assert d.bundles == ["s"]
        else:
            await until(lambda: not d.controller.has(*AT))
            assert (d.bundles, world.asked, world.deleted) == ([], ["s"], ["s"])


async def test_one_whose_making_was_cut_short(world: World, store: SandboxStore) -> None:
    async with daemon(world, store) as d:
        await d.controller.create("ns", SANDBOX, Wanted())
        (d.place.state / "ns/s/shim-binary-path").unlink()
        (d.place.state / "ns/s/config.json").unlink()
    async with daemon(world, store) as d:
        await d.controller.find()
        assert not d.controller.has(*AT)
        await until(lambda: d.bundles == [])
