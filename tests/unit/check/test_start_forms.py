"""What the kit says of the ways in which each generation of containerd's shims reads its start."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.starting_shims import install

from taskd import check
from taskd.check import Outcome, Subject
from taskd.check.differences import NO_NEW_DAEMONS, NO_OLD_DAEMONS, OPTIONS_FOR_PARAMETERS

CHECKS = (
    "start with options, as daemons before containerd 2.3 give them",
    "start with nothing to read, as they do without options",
    "start with parameters, as containerd 2.3 and later give them",
)


@pytest.mark.parametrize(
    ("generation", "known"),
    [
        ("1.6", (None, None, NO_NEW_DAEMONS)),
        ("1.7", (None, None, None)),
        ("2.3", (OPTIONS_FOR_PARAMETERS, None, None)),
        ("2.4", (NO_OLD_DAEMONS, NO_OLD_DAEMONS, None)),
    ],
)
async def test_each_generation(
    folder: Path, generation: str, known: tuple[check.Difference | None, ...]
) -> None:
    subject = Subject(install(folder, generation), timeout=120)
    results = await check.run(subject, check.select(CHECKS))
    assert [result.check.name for result in results[:-1]] == list(CHECKS)
    assert [result.differences for result in results[:-1]] == [
        (each,) if each else () for each in known
    ]
    assert all(result.outcome in (Outcome.PASSED, Outcome.KNOWN) for result in results)
