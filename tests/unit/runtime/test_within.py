"""Tasks in processes that are not their own: a sandbox's, or one that a client has named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from harness.fake_generation import OPTIONS, Observer, World, bundles

from taskd.errors import Unavailable, Unimplemented, Unknown
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.endings import UNKNOWN
from taskd.runtime.manager import TaskManager
from taskd.runtime.settings import Place, Settings, Timeouts
from taskd.runtime.shim import Shim, Tenant
from taskd.runtime.shims import Shims
from taskd.runtime.types import Exit, Key

IN_SANDBOX = replace(OPTIONS, sandbox="s")
KEY = Key("ns", "s")


class Daemon:
    """One that has sandboxes, which are nothing but tenants here."""

    def __init__(self, world: World, shims: Shims, tasks: TaskManager) -> None:
        self.shims = shims
        self.tasks = tasks
        self.place = Place(world.folder / "s-root", world.folder / "s-state")

    async def sandbox(self) -> Tenant:
        return await self.shims.start(KEY, OPTIONS, place=self.place)


@asynccontextmanager
async def daemon(world: World) -> AsyncIterator[Daemon]:
    settings = Settings(
        world.folder / "root", world.folder / "state", Timeouts(shutdown=0.2, cleanup=0.5)
    )
    async with anyio.create_task_group() as group:
        shims = Shims(settings, world.generation(), group)
        observer: Any = Observer()
        yield Daemon(world, shims, TaskManager(shims, group, observer))
        group.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def deleted(world: World) -> None:
    world.deletion = Exit(7, 3, 1)


async def test_no_process_is_started_for_a_task_in_a_sandbox(world: World) -> None:
    async with daemon(world) as d:
        sandbox = await d.sandbox()
        task = await d.tasks.create("ns", "one", IN_SANDBOX, sandbox.shim)
        assert list(world.processes) == ["s.sock"]
        assert task.shim is sandbox.shim
        assert (task.bundle.path / "sandbox").read_text() == "s"
        assert (task.bundle.path / "bootstrap.json").exists()
        await d.tasks.delete("ns", "one")
        # Neither is it asked to end, nor is there anything to clean up after.
        assert (world.asked, world.deleted, bundles(world)) == ([], [], [])
        assert world.runs("s")
        assert await d.shims.take_down(sandbox, UNKNOWN) == Exit(7, 137, 1)
        assert (world.asked, world.deleted) == (["s"], ["s"])


async def test_a_process_ends_with_the_last_that_lives_in_it(world: World) -> None:
    async with daemon(world) as d:
        sandbox = await d.sandbox()
        shim = sandbox.shim
        # Of the sandbox's name: bundles tell them apart.
        await d.tasks.create("ns", "s", IN_SANDBOX, shim)
        await d.shims.take_down(sandbox, UNKNOWN)
        assert (world.asked, world.runs("s")) == ([], True)
        assert not sandbox.bundle.path.exists()
        await d.tasks.delete("ns", "s")
        assert world.asked == ["s"]
        with pytest.raises(Unknown, match='^failed to start shim: failed to load sandbox task "s"'):
            await d.tasks.create("ns", "two", IN_SANDBOX, shim)
        assert bundles(world) == []


async def test_one_that_is_about_to_end_agrees_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(world) as d:
        sandbox = await d.sandbox()

        async def closing() -> None:
            raise Unavailable("the server is closing")

        api = d.shims.api

        def ending(shim: Shim, bundle: Bundle) -> Any:
            found = api(shim, bundle)
            monkeypatch.setattr(found, "shutdown", closing)
            return found

        monkeypatch.setattr(d.shims, "api", ending)
        await d.shims.take_down(sandbox, UNKNOWN)
        assert world.runs("s")  # it was not killed


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_named_process_is_not_ours_to_end(world: World, restarted: bool) -> None:
    world.tells_pid = False
    named = world.begin(Bundle("ns", "other", world.folder))
    async with daemon(world) as d:
        await d.tasks.create("ns", "one", IN_SANDBOX, named)
        await d.tasks.create("ns", "two", IN_SANDBOX, named)
        assert list(world.processes) == ["other.sock"]
        if not restarted:
            await d.tasks.delete("ns", "one")
            assert world.asked == []
            await d.tasks.delete("ns", "two")
    if restarted:
        async with daemon(world) as d:
            await d.tasks.load(10)
            for name in ("one", "two"):
                await d.tasks.delete("ns", name)
    # The last one asks it, as containerd does.
    assert world.asked == ["two"]
    assert (world.deleted, bundles(world), world.runs("other")) == ([], [], True)
    assert (world.folder / "other.sock").exists()


async def test_sandboxes_are_found_before_what_is_in_them(world: World) -> None:
    async with daemon(world) as d:
        sandbox = await d.sandbox()
        await d.tasks.create("ns", "one", IN_SANDBOX, sandbox.shim)
    async with daemon(world) as d:
        keys, (found,) = await d.shims.survey(d.place)
        assert keys == {KEY}
        await d.tasks.load(10)
        (task,) = d.tasks.all()
        assert task.shim is found.shim
        assert not found.shim.foreign
        await d.tasks.delete("ns", "one")
        assert world.asked == []


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        (Bootstrap("unix:///x", "odd", 3), Unknown, 'unexpected protocol: "odd"'),
        (Bootstrap("unix:///x", "ttrpc", 4), Unimplemented, r"unsupported shim version \(4\)"),
    ],
)
async def test_what_nobody_can_speak_with(
    world: World, address: Bootstrap, error: type[Exception], words: str
) -> None:
    async with daemon(world) as d:
        with pytest.raises(error, match=words):
            await d.tasks.create("ns", "one", IN_SANDBOX, address)
        assert (bundles(world), world.processes) == ([], {})
