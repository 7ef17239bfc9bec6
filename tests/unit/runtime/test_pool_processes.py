"""How processes of pools are started, passed over, found, and ended."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from harness.fake_generation import OPTIONS, Observer, World, managing

from taskd.codec import encode
from taskd.errors import TaskdError, Unknown
from taskd.proto.containerd.runc.v1 import Options
from taskd.runtime.pool import PoolLimits
from taskd.runtime.types import Exit
from taskd.types import TypedValue

POOL = PoolLimits(size=2, idle=0.2)


@pytest.fixture(autouse=True)
def _pools(world: World) -> None:
    world.pools = True


def homes(world: World) -> list[str]:
    return sorted(path.name for path in world.folder.glob("state/.pool/ns/*"))


def running(world: World) -> int:
    return sum(process.poll() is None for process in world.processes.values())


async def until_homes(world: World, number: int) -> None:
    with anyio.fail_after(10):
        while len(homes(world)) != number:
            await anyio.sleep(0.01)


async def test_a_process_is_filled_and_goes_on(world: World) -> None:
    async with managing(world, limits=PoolLimits(size=2, idle=100)) as tasks:
        made = [await tasks.create("ns", name, OPTIONS) for name in ("one", "two", "three")]
        assert len({task.shim for task in made}) == 2
        world.deletion = Unknown("no")
        with pytest.raises(TaskdError):
            await tasks.delete("ns", "one")
        assert len(homes(world)) == 2
        world.create_error = Unknown("no")
        with pytest.raises(TaskdError):  # it gives its place back
            await tasks.create("ns", "four", OPTIONS)
        world.create_error = None
        four = await tasks.create("ns", "four", OPTIONS)
        assert four.shim is made[2].shim
        assert not world.asked


async def test_what_is_idle_is_asked_to_end(world: World) -> None:
    async with managing(world, limits=POOL) as tasks:
        task = await tasks.create("ns", "one", OPTIONS)
        (name,) = homes(world)
        world.gone.add("one")
        world.agrees = False
        world.connections["one"].closed.set()
        await until_homes(world, 0)
        assert task.shim.ends
        # This one is idle alone.
        world.agrees = True
        world.create_error = Unknown("no")
        with pytest.raises(TaskdError):
            await tasks.create("ns", "two", OPTIONS)
        (other,) = homes(world)
        assert other != name
        await until_homes(world, 0)
        assert world.asked == [other]


async def test_a_cgroup_of_its_own_takes_a_process_of_its_own(world: World) -> None:
    wanted = TypedValue("containerd.runc.v1.Options", encode(Options(shim_cgroup="/shims")))
    async with managing(world, limits=POOL) as tasks:
        one = await tasks.create("ns", "one", replace(OPTIONS, runtime_options=wanted))
        two = await tasks.create("ns", "two", OPTIONS)
        assert (one.shim.home, two.shim.home is None) == (None, False)


async def test_a_process_that_does_not_start_is_nobodys(world: World) -> None:
    async with managing(world, limits=POOL) as tasks:
        world.start_error = Unknown("no room")
        failed = []

        async def create(name: str) -> None:
            try:
                await tasks.create("ns", name, OPTIONS)
            except TaskdError as exc:
                failed.append(str(exc))

        async with anyio.create_task_group() as group:
            for name in ("one", "two"):
                group.start_soon(create, name)
        assert failed == ["failed to start shim: start failed: no room"] * 2
        assert homes(world) == []
        assert running(world) == 0
        world.start_error = None
        await tasks.create("ns", "one", OPTIONS)


async def test_whoever_goes_away_stops_no_process(world: World) -> None:
    async with managing(world, limits=PoolLimits(size=2, idle=100)) as tasks:
        async with anyio.create_task_group() as group:
            group.start_soon(tasks.create, "ns", "one", OPTIONS)
            await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        two = await tasks.create("ns", "two", OPTIONS)
        three = await tasks.create("ns", "three", OPTIONS)
        assert two.shim is three.shim
        assert len(world.processes) <= 2
        assert [task.id for task in tasks.all()] == ["two", "three"]


async def test_what_does_not_answer_is_passed_over(world: World) -> None:
    async with managing(world, limits=POOL) as tasks:
        one = await tasks.create("ns", "one", OPTIONS)
        world.silent.update(homes(world))
        two = await tasks.create("ns", "two", OPTIONS)
        assert two.shim is not one.shim
        # And ended when there is nothing in it.
        assert one.shim.home is not None
        home = one.shim.home.path
        world.agrees = True
        world.deletion = Exit(7, 0, 1)
        await tasks.delete("ns", "one")
        with anyio.fail_after(10):
            while home.exists():
                await anyio.sleep(0.01)
        assert world.asked == []


@pytest.mark.parametrize("pools", [True, False])
async def test_a_later_daemon_finds_them(world: World, pools: bool) -> None:
    limits = PoolLimits(size=2, idle=100)
    async with managing(world, limits=limits) as tasks:
        await tasks.create("ns", "one", OPTIONS)
        for name in ("two", "three"):
            await tasks.create("ns", name, OPTIONS)
        world.create_error = Unknown("no")
        world.gone.add("three")
    world.create_error = None
    before = homes(world)
    async with managing(world, Observer(), limits=limits if pools else None) as tasks:
        assert await tasks.load(10) == {("ns", "one"), ("ns", "two"), ("ns", "three")}
        assert [task.id for task in tasks.all()] == ["one", "two"]
        if pools:
            four = await tasks.create("ns", "four", OPTIONS)
            assert four.shim.home is not None
            assert four.shim.home.id in before
            assert homes(world) == before
        else:
            # What is empty is not needed any more.
            await until_homes(world, 1)
            world.pools = False
            four = await tasks.create("ns", "four", OPTIONS)
            assert four.shim.home is None
        assert tasks.get("ns", "one").shim is tasks.get("ns", "two").shim


async def test_a_process_that_was_being_started_is_removed(world: World) -> None:
    world.create_error = Unknown("no")
    async with managing(world, limits=POOL) as tasks:
        with pytest.raises(TaskdError):
            await tasks.create("ns", "one", OPTIONS)
    (home,) = world.folder.glob("state/.pool/ns/*")
    (home / "bootstrap.json").unlink()
    (home / "address").write_text(f"unix://{world.folder / home.name}.sock")
    async with managing(world, limits=POOL) as tasks:
        await tasks.load(10)
        await until_homes(world, 0)
    assert running(world) == 0


async def test_an_empty_process_that_dies_leaves_nothing(world: World) -> None:
    async with managing(world, limits=PoolLimits(size=2, idle=100)) as tasks:
        world.create_error = Unknown("no")
        with pytest.raises(TaskdError):
            await tasks.create("ns", "one", OPTIONS)
        (home,) = homes(world)
        world.connections["one"].closed.set()
        await until_homes(world, 0)
        world.create_error = None
        await tasks.create("ns", "one", OPTIONS)
        assert homes(world) != [home]


async def test_a_daemon_that_ends_takes_the_empty_ones_along(world: World) -> None:
    async with managing(world, limits=PoolLimits(size=2, idle=100)) as tasks:
        await tasks.create("ns", "one", OPTIONS)
        await tasks.create("ns", "two", OPTIONS)
        await until_homes(world, 2)
        full = tasks.get("ns", "one").shim
        await tasks._shims.close()
        assert full.home is not None
        assert homes(world) == [full.home.id]
        assert world.asked != [full.home.id]


async def test_what_does_not_survive_its_process_has_one_of_its_own(world: World) -> None:
    """Unless somebody has said that it is to share one."""
    world.traits["mortal"] = ""
    limits = PoolLimits(size=2, idle=100, of_survivors=True)
    async with managing(world, limits=limits) as tasks:
        made = [await tasks.create("ns", name, OPTIONS) for name in ("one", "two")]
        assert [task.shim.home for task in made] == [None, None]
        # The one that has told so is not kept, and no other one is started to ask it.
        await until_homes(world, 0)
        assert len(world.processes) == 3
    async with managing(world, limits=PoolLimits(size=2, idle=100)) as tasks:
        made = [await tasks.create("ns", name, OPTIONS) for name in ("three", "four")]
        assert made[0].shim is made[1].shim


async def test_what_belongs_into_another_process_starts_none_in_vain(world: World) -> None:
    world.traits["groups"] = "a.group"
    grouped = replace(OPTIONS, spec=TypedValue("spec", b'{"annotations": {"a.group": "g"}}'))
    async with managing(world, limits=POOL) as tasks:
        one = await tasks.create("ns", "one", grouped)
        assert one.shim.home is None
        await until_homes(world, 0)
        begun = len(world.processes)
        two = await tasks.create("ns", "two", grouped)
        assert two.shim.home is None
        assert len(world.processes) == begun + 1
        assert homes(world) == []
        three = await tasks.create("ns", "three", OPTIONS)
        assert three.shim.home is not None
