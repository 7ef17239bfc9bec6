"""``taskd shim check``: whether a shim keeps to the protocol between shims and their daemon.

It plays the daemon's part, without one: see docs/shim-check.md.
"""

import taskd.check.themes  # noqa: F401 - which make their checks known
from taskd.check.programs import PROGRAMS, own_programs
from taskd.check.registry import CHECKS, Check, Outcome, Result
from taskd.check.runner import LEAKS, run
from taskd.check.subject import Subject, find, runtime_options

__all__ = [
    "CHECKS",
    "LEAKS",
    "PROGRAMS",
    "Check",
    "Outcome",
    "Result",
    "Subject",
    "find",
    "own_programs",
    "run",
    "runtime_options",
    "select",
]


def select(words: list[str]) -> list[Check]:
    """The checks whose theme or name contains one of `words`; all, if there are none."""
    lower = [word.lower() for word in words]
    return [
        check
        for check in CHECKS
        if not lower or any(word in f"{check.theme}: {check.name}".lower() for word in lower)
    ]
