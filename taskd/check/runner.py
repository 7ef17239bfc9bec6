"""Runs checks, some at once, each with a case of its own or with the scene that it shares."""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import anyio

from taskd.check.case import Case
from taskd.check.registry import (
    SKIPPED,
    Check,
    Failed,
    Missing,
    NotApplicable,
    Outcome,
    Play,
    Result,
)
from taskd.check.subject import Subject
from taskd.errors import TaskdError

__all__ = ["LEAKS", "run"]

AT_ONCE = 4

LEAKS = Check("leaks", "nothing is left of what all other checks made", lambda case: _nothing())


async def _nothing() -> None: ...


async def run(
    subject: Subject,
    checks: Sequence[Check],
    *,
    at_once: int = AT_ONCE,
    tell: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run `checks`; their results in the same order, and last that of `LEAKS`.

    `tell` hears of each as soon as it is there.
    """
    runner = _Runner(subject, tell)
    limiter = anyio.CapacityLimiter(at_once)

    async def job(some: Sequence[Check]) -> None:
        async with limiter:
            await runner.run(some)

    async with anyio.create_task_group() as group:
        for some in _jobs(checks):
            group.start_soon(job, some)
    return [*(runner.results[id(each)] for each in checks), runner.leaks()]


def _jobs(checks: Iterable[Check]) -> list[list[Check]]:
    """Checks that share a scene and leave it as it is are one job, the others one each.

    What takes longest begins first.
    """
    scenes: dict[tuple[str, Play], list[Check]] = {}
    jobs: list[list[Check]] = []
    for check in checks:
        if check.scene is None or check.spoils:
            jobs.append([check])
        else:
            scenes.setdefault((check.theme, check.scene), []).append(check)
    return sorted([*scenes.values(), *jobs], key=len, reverse=True)


class _Runner:
    def __init__(self, subject: Subject, tell: Callable[[Result], None]) -> None:
        self._subject = subject
        self._tell = tell
        self.results: dict[int, Result] = {}
        self._left: list[str] = []
        # Scenes that this shim cannot be brought into, and why.
        self._absent: dict[Play, str] = {}

    async def run(self, checks: Sequence[Check]) -> None:
        """Run checks one after the other, in one scene for as long as it is whole."""
        case: Case | None = None
        names: list[str] = []
        try:
            for check in checks:
                if case is None and check.scene in self._absent:
                    reason = self._absent[check.scene]
                    self._add(Result(check, Outcome.NOT_APPLICABLE, reason=reason))
                    continue
                began = time.monotonic()
                fresh = case is None
                case = case or await Case.open(self._subject)
                names.append(check.name)
                result = await self._attempt(check, case, fresh)
                if result.outcome is Outcome.FAILED:
                    await case.abandon()
                    case = None
                elif check is checks[-1] or result.outcome in SKIPPED:
                    result = await self._finish(case, result, names)
                    case = None
                if case is None:
                    names = []
                self._add(replace(result, seconds=time.monotonic() - began))
        finally:
            if case is not None:
                await case.abandon()

    def _add(self, result: Result) -> None:
        self.results[id(result.check)] = result
        self._tell(result)

    async def _attempt(self, check: Check, case: Case, fresh: bool) -> Result:
        await case.begin()

        async def play() -> None:
            if check.scene is not None and fresh:
                try:
                    await check.scene(case)
                except (Missing, NotApplicable) as exc:
                    self._absent[check.scene] = str(exc)
                    raise
            await check.run(case)

        return await self._outcome(check, case, play)

    async def _outcome(
        self, check: Check, case: Case, play: Callable[[], Awaitable[None]]
    ) -> Result:
        try:
            with anyio.fail_after(self._subject.timeout):
                await play()
        except Exception as exc:
            cause = _cause(exc)
            if isinstance(cause, Missing) and cause.method == check.about:
                return Result(check, Outcome.MISSING)
            if isinstance(cause, Missing | NotApplicable):
                return Result(check, Outcome.NOT_APPLICABLE, reason=str(cause))
            return _failed(check, case, self._failure(case, cause))
        found = tuple(case.differences)
        return Result(check, Outcome.KNOWN if found else Outcome.PASSED, differences=found)

    def _failure(self, case: Case, cause: BaseException) -> Failed:
        match cause:
            case Failed():
                return cause
            case TimeoutError():
                came = f"it has not come to its end in {self._subject.timeout:g} s"
                return Failed(_last_call(case), "an end", came)
            case TaskdError():
                return Failed(_last_call(case), "OK", f"{cause.code.name}: {cause}")
            case _:
                came = "".join(traceback.format_exception(cause, limit=-4))
                return Failed("the check itself", "no exception", came)

    async def _finish(self, case: Case, result: Result, names: Sequence[str]) -> Result:
        """End the case; what it leaves is told by `LEAKS`, and what fails by the check."""
        left: list[str] = []

        async def finish() -> None:
            left.extend(await case.finish())

        end = await self._outcome(result.check, case, finish)
        if end.outcome is Outcome.FAILED:
            with suppress(Exception):
                await case.abandon()
            return end if result.outcome is not Outcome.FAILED else result
        if left:
            several = f" (and {len(names) - 1} before it)" if len(names) > 1 else ""
            self._left += [f"{result.check.theme}: {names[-1]}{several}: {each}" for each in left]
        return result

    def leaks(self) -> Result:
        if not self._left:
            result = Result(LEAKS, Outcome.PASSED)
        else:
            failure = Failed("the end of every check", "nothing left", "\n".join(self._left))
            result = Result(LEAKS, Outcome.FAILED, reason=_one_line(failure), failure=failure)
        self._tell(result)
        return result


def _failed(check: Check, case: Case, failure: Failed) -> Result:
    return Result(
        check,
        Outcome.FAILED,
        reason=_one_line(failure),
        failure=failure,
        calls=tuple(case.calls),
        log=tuple(case.log()),
    )


def _cause(exc: BaseException) -> BaseException:
    """What went wrong first, of what was done at once."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _last_call(case: Case) -> str:
    return case.calls[-1].split(" -> ")[0] if case.calls else "the check"


def _one_line(failure: Failed) -> str:
    return f"{failure.called}: {failure.came}".splitlines()[0]
