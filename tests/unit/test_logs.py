from __future__ import annotations

import logging
import sys

import pytest

from taskd.logs import _Formatter


def formatted(message: str, *arguments: object, exc_info: object = None) -> str:
    formatter = _Formatter("%(levelname)s %(name)s: %(message)s")
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
