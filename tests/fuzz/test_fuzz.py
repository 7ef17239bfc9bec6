"""A short form of each target; `make fuzz` is the long one."""

from __future__ import annotations

import pytest

from fuzz import TARGETS
from fuzz.session import Session

CASES = {
    "filters": 4000,
    "configuration": 500,
    "ttrpc-server": 600,
    "ttrpc-client": 400,
    "archives": 15,
    "databases": 40,
    "grpc": 150,
}


def test_each_target_has_a_short_form() -> None:
    assert CASES.keys() == TARGETS.keys()


@pytest.mark.parametrize("target", CASES)
async def test_bad_input(target: str) -> None:
    # The same cases each time: what is new `make fuzz` finds.
    session = Session(target, cases=CASES[target], seed=20261127)
    print(f"seed {session.seed}")
    await TARGETS[target](session)
    print(session)
    assert session.tried == CASES[target]
    assert len(session.outcomes) > 1, "all cases are alike"
