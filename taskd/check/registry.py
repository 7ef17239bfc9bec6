"""What a check is, how it can end, and how the themes' modules make theirs known."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from taskd.check.case import Case

__all__ = [
    "CHECKS",
    "SKIPPED",
    "Check",
    "Difference",
    "Failed",
    "Missing",
    "NotApplicable",
    "Outcome",
    "Play",
    "Result",
    "Theme",
    "running",
]

Play: TypeAlias = "Callable[[Case], Awaitable[None]]"


class Outcome(enum.Enum):
    """How a check ended."""

    PASSED = "passed"
    KNOWN = "known difference"
    """It passed, in a way that one generation of containerd's shims has."""
    MISSING = "not implemented"
    """The shim says so of a method that a shim need not have."""
    NOT_APPLICABLE = "not applicable"
    FAILED = "failed"


SKIPPED = (Outcome.MISSING, Outcome.NOT_APPLICABLE)


@dataclass(frozen=True)
class Difference:
    """Something that one generation of containerd's shims does otherwise than the others."""

    shims: str
    """Whose it is: ``containerd 1.6``."""
    what: str


class Failed(Exception):
    """The shim did not do what it should have."""

    def __init__(self, called: str, expected: str, came: str) -> None:
        super().__init__(f"{called}: expected {expected}, but {came} came")
        self.called = called
        self.expected = expected
        self.came = came


class Missing(Exception):
    """The shim answered UNIMPLEMENTED to a `method` that a shim need not have."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not implemented")
        self.method = method


class NotApplicable(Exception):
    """What is checked cannot be there, for a reason that the message gives."""


@dataclass(frozen=True)
class Check:
    """One check: `run` raises one of the above if the shim does not pass it."""

    theme: str
    name: str
    run: Play
    about: str = ""
    """The optional method that is checked; others are only used."""
    scene: Play | None = None
    """What comes before; a theme's checks share it, except those that spoil it."""
    spoils: bool = False
    place: tuple[str, str] | None = None
    """Row and column, of a check that is shown in a table of its theme."""


@dataclass(frozen=True)
class Result:
    """How one check ended."""

    check: Check
    outcome: Outcome
    seconds: float = 0.0
    differences: tuple[Difference, ...] = ()
    reason: str = ""
    """Why it does not apply, or in one line, why it failed."""
    failure: Failed | None = None
    calls: tuple[str, ...] = ()
    """What was called last, and what came, if it failed."""
    log: tuple[str, ...] = ()
    """What the shim wrote to its log last, if it failed."""


CHECKS: list[Check] = []
"""All checks, in the order in which they are shown."""


@dataclass(frozen=True)
class Theme:
    """A number of checks that are about one thing."""

    name: str
    scene: Play | None = None
    """What all of its checks share, unless they say otherwise."""
    checks: list[Check] = field(default_factory=lambda: CHECKS)

    def check(
        self, name: str, *, about: str = "", scene: Play | None = None, spoils: bool = False
    ) -> Callable[[Play], Play]:
        """Make the decorated function a check."""

        def add(play: Play) -> Play:
            shared = scene or self.scene
            self.checks.append(Check(self.name, name, play, about, shared, spoils))
            return play

        return add


async def running(case: Case) -> None:
    """A scene: `Case.container` runs. What shares it leaves it so."""
    await case.running()
