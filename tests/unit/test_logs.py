from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from taskd import logs
from taskd.logs import _is_journal, _Journal, _Json, _Text


def formatted(message: str, *arguments: object, exc_info: object = None) -> str:
    formatter = _Text("%(levelname)s %(name)s: %(message)s")
    record = logging.LogRecord("taskd", logging.INFO, "", 0, message, arguments, exc_info)  # type: ignore[arg-type]
    return formatter.format(record)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ("größer 大 ✓", "größer 大 ✓"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("one\nINFO taskd: two", r"one\nINFO taskd: two"),
        ("tab\tcr\r", r"tab\tcr\r"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202edlrow", r"\u202edlrow"),
        ("\u2028", r"\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_a_line_is_one_line_that_shows(name: str, shown: str) -> None:
    assert formatted("container %s", name) == f"INFO taskd: container {shown}"


def test_an_exception_does_not_look_like_other_lines() -> None:
    try:
        raise ValueError("\x1b[2J\nINFO taskd: all is well")
    except ValueError:
        first, *rest = formatted("it failed", exc_info=sys.exc_info()).split("\n")
    assert first == "INFO taskd: it failed"
    assert rest[-2:] == [r"    ValueError: \x1b[2J", "    INFO taskd: all is well"]
    assert all(line.startswith("    ") for line in rest)


def record(level: int, message: str, exc_info: object = None) -> logging.LogRecord:
    found = logging.LogRecord("taskd.x", level, "", 0, message, (), exc_info)  # type: ignore[arg-type]
    found.created = 1_700_000_000.25
    return found


@pytest.fixture(params=[("UTC0", 0), ("AAA-5:30", 330), ("BBB3:30", -210)])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[timezone]:
    name, minutes = request.param
    monkeypatch.setenv("TZ", name)
    time.tzset()
    yield timezone(timedelta(minutes=minutes))
    monkeypatch.undo()
    time.tzset()


def test_times_have_their_zone(zone: timezone) -> None:
    line = _Text("%(asctime)s %(message)s").format(record(logging.INFO, "it"))
    expected = datetime.fromtimestamp(1_700_000_000.25, zone)
    assert line == f"{expected.isoformat(timespec='milliseconds')} it"


@pytest.mark.parametrize(
    ("level", "word", "priority"),
    [
        (logs.TRACE, "trace", 7),
        (logging.DEBUG, "debug", 7),
        (logging.INFO, "info", 6),
        (logging.WARNING, "warning", 4),
        (logging.ERROR, "error", 3),
        (logging.CRITICAL, "fatal", 2),
    ],
)
def test_levels_in_json_and_in_the_journal(level: int, word: str, priority: int) -> None:
    logging.addLevelName(logs.TRACE, "TRACE")
    entry = json.loads(_Json().format(record(level, 'größer "\n\x1b')))
    moment = datetime.fromisoformat(entry.pop("time"))
    assert (moment.timestamp(), entry) == (
        1_700_000_000.25,
        {"level": word, "logger": "taskd.x", "msg": 'größer "\n\x1b'},
    )
    shown = _Journal("%(name)s: %(message)s").format(record(level, "a\nb"))
    assert shown == f"<{priority}>taskd.x: a\\nb"


def test_each_line_of_an_exception_has_its_priority() -> None:
    try:
        raise ValueError("one\n<0>two")
    except ValueError:
        failed = record(logging.ERROR, "it failed", sys.exc_info())
    lines = _Journal("%(message)s").format(failed).split("\n")
    assert lines[0] == "<3>it failed"
    assert all(line.startswith("<3>") for line in lines)
    assert lines[-1] == "<3>    <0>two"
    assert "<0>two" in json.loads(_Json().format(failed))["error"]


def test_only_what_the_journal_reads_is_for_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        found = os.fstat(file.fileno())
        ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert _is_journal(file.fileno(), ours)
        assert not _is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:1"})
        assert not _is_journal(file.fileno(), {})
