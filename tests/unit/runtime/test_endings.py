"""Every way in which a task's stay in a shim ends, and what each of them does to that shim."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from harness.fake_generation import OPTIONS, Observer, World, bundles, managing

from taskd import ttrpc
from taskd.errors import NotFound, TaskdError, Unknown
from taskd.runtime.bundle import Bundle
from taskd.runtime.task import Task
from taskd.runtime.types import Exit

EXITED = Exit(7, 3, 1)
"""As a shim tells it that deletes a task."""


@dataclass(frozen=True)
class Done:
    """What becomes of a shim, and who is told what."""

    asked: bool
    """It was asked to shut down."""
    killed: bool
    cleaned: bool
    """Its ``delete`` was run."""
    told: list[tuple[str, object]] = field(default_factory=list)


async def end(world: World, how: str, *others: str) -> Observer:
    """Let the task ``one`` end, in one of the ways that there are, of `others` in its process."""
    observer = Observer()
    async with managing(world, observer) as tasks:
        for other in others:
            await tasks.create("ns", other, OPTIONS)
        prepare(world, how)
        if how == "start fails" or "create" in how:
            with pytest.raises(TaskdError):
                await tasks.create("ns", "one", OPTIONS)
        else:
            await tasks.create("ns", "one", OPTIONS)
        match how:
            case "is deleted":
                assert await tasks.delete("ns", "one") == EXITED
            case "is not known":
                with pytest.raises(NotFound):
                    await tasks.delete("ns", "one")
            case "dies":
                world.connections["one"].closed.set()
                with anyio.fail_after(10):
                    while not observer.told:
                        await anyio.sleep(0.01)
        if "later" not in how:
            assert [task.id for task in tasks.all()] == list(others)
    if "later" in how:
        leave(world, how)
        async with managing(world, observer) as tasks:
            await tasks.load(10)
            assert [task.id for task in tasks.all()] == list(others)
    return observer


def prepare(world: World, how: str) -> None:
    match how:
        case "start fails":
            world.start_error = Unknown("no")
        case "create is refused":
            world.create_error = Unknown("no")
        case "create is refused, with a process":
            world.create_error, world.made_first = Unknown("no"), True
        case "create is not answered":
            world.create_error = ttrpc.ConnectionClosed()
        case "create and delete hang":
            world.create_error, world.deletion = Unknown("no"), None
        case "is deleted":
            world.deletion = EXITED
        case "is not known":
            world.deletion = NotFound("one")


def leave(world: World, how: str) -> None:
    """What another daemon finds."""
    match how:
        case "is found dead later":
            world.reachable = False
        case "is found without a task later":
            world.gone.add("one")
        case "is found half made later":
            (world.folder / "state/ns/one/shim-binary-path").unlink()


UNSEEN = ("lost", 137)
"""As the fake's ``delete`` tells it."""
WAYS = {
    ("start fails", True): Done(asked=False, killed=True, cleaned=False),
    ("create is refused", True): Done(True, False, False, [("abandoned", None)]),
    ("create is refused", False): Done(True, True, True, [("abandoned", None)]),
    ("create is refused, with a process", True): Done(True, False, True, [("abandoned", None)]),
    ("create is not answered", True): Done(True, True, True, [("abandoned", None)]),
    ("create is not answered", False): Done(True, True, True, [("abandoned", None)]),
    ("create and delete hang", True): Done(False, True, True, [("abandoned", None)]),
    ("is deleted", True): Done(True, False, True, [("deleted", EXITED)]),
    ("is deleted", False): Done(True, True, True, [("deleted", EXITED)]),
    ("is not known", True): Done(True, False, True, [("deleted", None)]),
    ("is not known", False): Done(True, True, True, [("deleted", None)]),
    ("dies", True): Done(False, True, True, [UNSEEN]),
    ("is found dead later", True): Done(False, True, True, [UNSEEN]),
    ("is found without a task later", True): Done(True, False, True, [UNSEEN]),
    ("is found without a task later", False): Done(True, True, True, [UNSEEN]),
    ("is found half made later", True): Done(False, True, False),
}
"""By what happens, and whether the shim agrees to shut down."""


@pytest.mark.parametrize(("how", "agrees"), WAYS)
async def test_of_a_shim_with_one_task(world: World, how: str, agrees: bool) -> None:
    world.agrees = agrees
    observer = await end(world, how)
    done = Done(bool(world.asked), not world.runs("one"), bool(world.deleted), observer.told)
    assert done == WAYS[how, agrees]
    assert bundles(world) == []
    socket = world.socket(Bundle("ns", "one", Path()))
    # What agrees to end has until then to remove it itself.
    assert socket.exists() is not done.killed


async def test_no_delete_follows_a_shim_that_needs_none(world: World) -> None:
    world.deletes_after_shutdown = False
    await end(world, "is deleted")
    assert world.deleted == []


OF_A_PROCESS = {"start fails", "dies", "is found dead later"}
SHARED = sorted({how for how, _ in WAYS} - OF_A_PROCESS)


@pytest.mark.parametrize("how", SHARED)
async def test_of_a_shim_with_another_task(world: World, how: str) -> None:
    """It goes on, whatever becomes of the one, and is not even asked to end."""
    world.name = "group"
    observer = await end(world, how, "two")
    alone = WAYS[how, True]
    assert world.runs("group")
    assert not world.asked
    assert (bool(world.deleted), observer.told) == (alone.cleaned, alone.told)
    assert [bundle.name for bundle in bundles(world)] == ["two"]


@pytest.mark.parametrize("knows", [True, False])
async def test_a_shim_that_goes_on_is_asked_again_to_delete_what_nobody_wants(
    world: World, knows: bool
) -> None:
    """It could not, and the bundle is gone now; one that knows of no such task has done so."""
    world.name = "group"
    world.deletion = Unknown("busy") if knows else NotFound("one")
    await end(world, "create is not answered", "two")
    assert world.undone == [("one", True), ("one", False)][: 1 + knows]


@pytest.mark.parametrize("others", [(), ("other",)])
async def test_who_waits_for_what_is_deleted_hears_how_it_ended(
    world: World, others: tuple[str, ...]
) -> None:
    """A process that goes on, for others, answers no more than one that ends."""
    world.name, world.deletion = "shared", EXITED
    answers: dict[str, object] = {}

    async def wait(task: Task, exec_id: str) -> None:
        try:
            answers[exec_id] = await task.wait(exec_id)
        except TaskdError as exc:
            answers[exec_id] = type(exc)

    async with managing(world) as tasks:
        for other in others:
            await tasks.create("ns", other, OPTIONS)
        task = await tasks.create("ns", "one", OPTIONS)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for exec_id in ("", "exec"):
                    group.start_soon(wait, task, exec_id)
                while world.waiting < 2:
                    await anyio.sleep(0.01)
                await tasks.delete("ns", "one")
    assert answers == {"": EXITED, "exec": NotFound}
