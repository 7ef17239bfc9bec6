from __future__ import annotations

import time
from pathlib import Path

import pytest

from taskd import clock
from taskd.clock import Clock

SECOND = 10**9
DAY = 24 * 3600 * SECOND


class Machine:
    """A machine whose clock can be set, and on which time passes as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.uptime = 100 * DAY, DAY
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)
        monkeypatch.setattr(clock, "_uptime", lambda: self.uptime)
        monkeypatch.setattr(clock, "_boot", lambda: self.boot)
        self.boot = "one"

    def passes(self, nanoseconds: int) -> None:
        self.wall += nanoseconds
        self.uptime += nanoseconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_it_goes_as_the_machines_does(machine: Machine) -> None:
    steady = Clock()
    for pause in (0, 1, SECOND, DAY, 30 * DAY):
        machine.passes(pause)
        assert steady.now() == machine.wall


@pytest.mark.parametrize("step", [2 * DAY, 30 * DAY, 20_000 * DAY])
def test_a_step_forward_is_followed_slowly(
    machine: Machine, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    steady, before = Clock(), machine.wall
    machine.wall += step
    assert steady.now() == before
    machine.passes(DAY // 24)
    assert before + DAY < steady.now() <= before + DAY + DAY // 24
    assert caplog.text.count("the clock was set forward") == 1
    machine.passes(step)
    assert steady.now() == machine.wall


def test_a_step_that_is_taken_back_has_done_nothing(machine: Machine) -> None:
    steady = Clock()
    machine.wall += 30 * DAY
    machine.passes(60 * SECOND)
    steady.now()
    machine.wall -= 30 * DAY
    assert steady.now() == machine.wall
    machine.wall -= 30 * DAY
    assert steady.now() == machine.wall


@pytest.mark.parametrize(("boot", "follows"), [("one", False), ("two", True)])
def test_the_next_daemon_has_the_same_time(
    machine: Machine, tmp_path: Path, boot: str, follows: bool
) -> None:
    """But on a machine that was off nobody knows how long that was."""
    file = tmp_path / "clock"
    with Clock(file):
        machine.wall += 30 * DAY
        machine.passes(SECOND)
    machine.boot = boot
    with Clock(file) as steady:
        assert (steady.now() == machine.wall) is follows


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"boot": "one"}', "\0"])
def test_a_bad_file_is_none(machine: Machine, tmp_path: Path, content: str) -> None:
    file = tmp_path / "clock"
    file.write_text(content)
    with Clock(file) as steady:
        assert steady.now() == machine.wall
    assert "uptime" in file.read_text()
