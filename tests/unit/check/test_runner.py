"""How checks are run, and what becomes of how they end; with checks that need no shim."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from taskd.check import CHECKS, LEAKS, Check, Outcome, Result, Subject, run, select
from taskd.check.case import Case
from taskd.check.registry import Difference, Failed, Missing, NotApplicable, Theme
from taskd.check.traces import alive
from taskd.errors import NotFound

SUBJECT = Subject(Path("/bin/false"), timeout=10)
DIFFERENCE = Difference("somebody's", "does it otherwise")


async def outcomes(*checks: Check) -> list[Outcome]:
    return [result.outcome for result in await run(SUBJECT, checks)]


def check(play: Callable[[Case], Awaitable[None]], **rest: object) -> Check:
    return Check("theme", "name", play, **rest)  # type: ignore[arg-type]


def raising(exc: Exception) -> Callable[[Case], Awaitable[None]]:
    async def play(case: Case) -> None:
        raise exc

    return play


async def passing(case: Case) -> None:
    pass


@pytest.mark.parametrize(
    ("exc", "about", "expected"),
    [
        (Failed("Start", "OK", "nothing"), "", Outcome.FAILED),
        (NotFound("container"), "", Outcome.FAILED),
        (ValueError("a fault of the check's own"), "", Outcome.FAILED),
        (ExceptionGroup("at once", [Failed("Start", "OK", "nothing")]), "", Outcome.FAILED),
        (Missing("Exec"), "Exec", Outcome.MISSING),
        (Missing("Exec"), "Pids", Outcome.NOT_APPLICABLE),
        (ExceptionGroup("at once", [Missing("Exec")]), "Exec", Outcome.MISSING),
        (NotApplicable("takes root"), "", Outcome.NOT_APPLICABLE),
    ],
)
async def test_how_a_check_may_end(exc: Exception, about: str, expected: Outcome) -> None:
    assert await outcomes(check(raising(exc), about=about)) == [expected, Outcome.PASSED]


async def test_a_known_difference_is_a_way_to_pass() -> None:
    async def play(case: Case) -> None:
        case.known(DIFFERENCE)
        case.known(DIFFERENCE)

    result, _ = await run(SUBJECT, [check(play)])
    assert (result.outcome, result.differences) == (Outcome.KNOWN, (DIFFERENCE,))


async def test_a_check_that_takes_too_long_fails() -> None:
    async def play(case: Case) -> None:
        case.note("Wait(id=one)", "")
        await asyncio.sleep(60)

    result, _ = await run(Subject(Path("/bin/false"), timeout=0.1), [check(play)])
    assert result.failure is not None
    assert (result.failure.called, result.failure.expected) == ("Wait(id=one)", "an end")


async def test_results_come_in_order_and_are_told_as_they_come() -> None:
    async def slow(case: Case) -> None:
        await asyncio.sleep(0.2)

    checks = [check(slow), check(passing)]
    told: list[Result] = []
    results = await run(SUBJECT, checks, tell=told.append)
    assert [result.check for result in results] == [*checks, LEAKS]
    assert [result.check for result in told] == [checks[1], checks[0], LEAKS]


def scene_of(cases: list[Case]) -> Callable[[Case], Awaitable[None]]:
    async def scene(case: Case) -> None:
        cases.append(case)

    return scene


async def test_checks_of_one_scene_share_it_but_for_those_that_spoil_it() -> None:
    cases: list[Case] = []
    scene, seen = scene_of(cases), []

    async def play(case: Case) -> None:
        seen.append(case)

    await outcomes(
        check(play, scene=scene),
        check(play, scene=scene, spoils=True),
        check(play, scene=scene),
    )
    assert len(cases) == 2
    assert sorted(seen.count(case) for case in cases) == [1, 2]


async def test_after_a_failure_the_scene_is_made_anew() -> None:
    cases: list[Case] = []
    scene = scene_of(cases)
    found = await outcomes(
        check(raising(Failed("a", "b", "c")), scene=scene), check(passing, scene=scene)
    )
    assert found == [Outcome.FAILED, Outcome.PASSED, Outcome.PASSED]
    assert len(cases) == 2


async def test_what_needs_a_scene_that_cannot_be_does_not_apply() -> None:
    begun = 0

    async def scene(case: Case) -> None:
        nonlocal begun
        begun += 1
        raise Missing("Pause")

    checks = [check(passing, scene=scene) for _ in range(3)]
    assert await outcomes(*checks) == [Outcome.NOT_APPLICABLE] * 3 + [Outcome.PASSED]
    assert begun == 1


async def test_what_is_left_is_found_and_swept_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskd.check.case._LEFT_SECONDS", 0.2)
    folders: list[Path] = []
    children: list[subprocess.Popen[bytes]] = []

    async def play(case: Case) -> None:
        folders.append(case.folder)
        (case.folder / "tmp" / "pty123").mkdir()
        child = subprocess.Popen(["/bin/sleep", "60"], env={"TASKD_CHECK": case.namespace})
        children.append(child)
        # It has no words of its own before its exec is complete.
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            await asyncio.sleep(0.01)

    checked, leaks = await run(SUBJECT, [check(play)])
    assert checked.outcome is Outcome.PASSED
    assert leaks.failure is not None
    process, file = leaks.failure.came.splitlines()
    assert process == f"theme: name: process {children[0].pid}: /bin/sleep 60 "
    assert file == f"theme: name: temporary file {folders[0]}/tmp/pty123"
    assert not alive(children[0].pid)
    children[0].wait()
    assert not folders[0].exists()


async def test_a_failed_check_is_swept_up_after_in_silence() -> None:
    children: list[subprocess.Popen[bytes]] = []

    async def play(case: Case) -> None:
        child = subprocess.Popen(["/bin/sleep", "60"], env={"TASKD_CHECK": case.namespace})
        children.append(child)
        raise Failed("a", "b", "c")

    assert await outcomes(check(play)) == [Outcome.FAILED, Outcome.PASSED]
    assert children[0].wait() == -9


def test_names_are_unique_and_each_module_has_added_its_checks() -> None:
    names = [f"{check.theme}: {check.name}" for check in CHECKS]
    assert len(set(names)) == len(names) > 250
    assert list(dict.fromkeys(check.theme for check in CHECKS)) == [
        "bootstrap",
        "lifecycle",
        "container by state",
        "exec by state",
        "execs",
        "stdio",
        "events",
        "concurrency",
        "death and delete",
        "adoption",
        "malformed ttrpc",
        "groups",
        "sandboxes",
        "leaks",
    ]


def test_select() -> None:
    assert select([]) == CHECKS
    events = select(["EVENTS:"])
    assert {each.theme for each in events} == {"events"}
    assert len(select(["events:", "running: Wait"])) == len(events) + 2
    assert select(["no such check"]) == []


def test_a_theme_adds_checks_in_order() -> None:
    checks: Sequence[Check] = []
    theme = Theme("theme", passing, list(checks))
    theme.check("one", about="Exec")(passing)
    theme.check("two", spoils=True)(passing)
    assert [(each.name, each.about, each.spoils) for each in theme.checks] == [
        ("one", "Exec", False),
        ("two", "", True),
    ]
    assert {each.scene for each in theme.checks} == {passing}
