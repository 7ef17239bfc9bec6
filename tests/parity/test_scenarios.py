"""Every scenario goes with taskd as it goes with a real containerd, generation by generation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.generations import COMPARED, Generation
from harness.real import need
from parity.known import KNOWN
from parity.runner import Pairs, compare
from parity.scenarios import Scenario, collected

SCENARIOS = collected()


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    need("containerd", "containerd-shim-runc-v2", "containerd-shim", "runc", "busybox")
    with Pairs() as started:
        yield started


CASES = [
    pytest.param(scenario, generation, id=f"{generation}: {scenario.name}")
    for generation in COMPARED
    for scenario in SCENARIOS
    if scenario.concerns(generation)
]


@pytest.mark.parametrize(("scenario", "generation"), CASES)
async def test_the_same_transcript(
    scenario: Scenario, generation: Generation, pairs: Pairs
) -> None:
    found = await compare(scenario, pairs, generation)
    if not found.differences:
        return
    # Shims and runc race, on either side: what differs must do so again, but is always told.
    again = await compare(scenario, pairs, generation)
    words = "\n".join(found.differences)
    if again.differences:
        pytest.fail(words, pytrace=False)
    warnings.warn(f"{scenario.name}, {generation}, differed once:\n{words}", stacklevel=1)


def test_what_is_known_is_about_scenarios_that_there_are() -> None:
    for known in KNOWN:
        assert any(scenario.name.startswith(known.scenario) for scenario in SCENARIOS), known


def test_what_the_document_names_is_there() -> None:
    document = Path(__file__).parents[2] / "docs/parity.md"
    named = re.findall(r"`((?:task|exec)s? [^`]*:[^`]*|[a-z]+:[^`]*)`", document.read_text())
    assert len(named) > 50
    for name in named:
        assert any(scenario.name.startswith(name) for scenario in SCENARIOS), name
