"""What is shown of results: tables for people, JUnit's XML for CI."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from taskd.check.registry import SKIPPED, Check, Difference, Outcome, Result
from taskd.printable import printable

__all__ = ["junit", "listing", "table", "write_junit"]

_WORDS = {
    Outcome.PASSED: "ok",
    Outcome.KNOWN: "ok",
    Outcome.MISSING: "absent",
    Outcome.NOT_APPLICABLE: "n/a",
    Outcome.FAILED: "FAILED",
}
_WIDTH = 9
# What XML 1.0 cannot say, whatever shims write to their logs.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


def table(subject: Path, results: Sequence[Result], seconds: float) -> str:
    """All that is to be said, failures last, and one line to sum it up."""
    notes = _Notes(results)
    lines = [f"{subject.name} ({subject})"]
    for theme, some in groupby(results, key=lambda result: result.check.theme):
        listed = list(some)
        if all(result.check.place is not None for result in listed):
            lines += ["", *_matrix(theme, listed, notes)]
        else:
            lines += ["", theme, *(_row(result, notes) for result in listed)]
    lines += ["", *notes.explained()] if notes.explained() else []
    for result in results:
        if result.outcome is Outcome.FAILED:
            lines += ["", *_failure(result)]
    return "\n".join([*lines, "", _summary(results, seconds)])


class _Notes:
    """Numbers for the known differences that were met."""

    def __init__(self, results: Iterable[Result]) -> None:
        met = (difference for result in results for difference in result.differences)
        self._numbers: dict[Difference, int] = {}
        for difference in met:
            self._numbers.setdefault(difference, len(self._numbers) + 1)

    def word(self, result: Result) -> str:
        numbers = "".join(f" [{self._numbers[each]}]" for each in result.differences)
        return _WORDS[result.outcome] + numbers

    def explained(self) -> list[str]:
        if not self._numbers:
            return []
        return [
            "known differences between shims, which are no failures",
            *(f"  [{number}] {each.shims}: {each.what}" for each, number in self._numbers.items()),
        ]


def _row(result: Result, notes: _Notes) -> str:
    because = f"  ({printable(result.reason)})" if result.outcome is Outcome.NOT_APPLICABLE else ""
    return f"  {notes.word(result):{_WIDTH}} {result.check.name}{because}"


def _matrix(theme: str, results: Sequence[Result], notes: _Notes) -> Iterator[str]:
    """A table with a row for each method and a column for each state."""
    places = {result.check.place: result for result in results if result.check.place}
    rows = list(dict.fromkeys(row for row, _ in places))
    columns = list(dict.fromkeys(column for _, column in places))
    width = max(map(len, rows)) + 2
    yield theme
    yield " " * (width + 2) + "".join(f"{column:{_WIDTH + 1}}" for column in columns).rstrip()
    for row in rows:
        cells = (places.get((row, column)) for column in columns)
        words = "".join(f"{notes.word(cell) if cell else '':{_WIDTH + 1}}" for cell in cells)
        yield f"  {row:{width}}{words}".rstrip()


def _failure(result: Result) -> Iterator[str]:
    failure = result.failure
    assert failure is not None
    yield f"FAILED  {result.check.theme}: {result.check.name}"
    for name, text in (
        ("called", failure.called),
        ("expected", failure.expected),
        ("came", failure.came),
    ):
        first, *rest = map(printable, text.splitlines() or [""])
        yield f"  {name:9} {first}"
        yield from (f"            {line}" for line in rest)
    for name, lines in (("the last calls", result.calls), ("the shim's log", result.log)):
        if lines:
            yield f"  {name}"
            yield from (f"    {printable(line)}" for line in lines)


def _summary(results: Sequence[Result], seconds: float) -> str:
    count = Counter(result.outcome for result in results)
    parts = [
        f"{count[Outcome.PASSED] + count[Outcome.KNOWN]} passed"
        + (f" ({count[Outcome.KNOWN]} in a known way)" if count[Outcome.KNOWN] else ""),
        f"{count[Outcome.FAILED]} failed",
        *(f"{count[each]} {each.value}" for each in SKIPPED if count[each]),
    ]
    return f"{len(results)} checks in {seconds:.0f} s: {', '.join(parts)}"


def listing(checks: Iterable[Check]) -> str:
    """The names of checks, by theme."""
    return "\n".join(f"{check.theme}: {check.name}" for check in checks)


def junit(subject: Path, results: Sequence[Result]) -> ElementTree.ElementTree[ElementTree.Element]:
    """A test suite for each theme; what is absent or does not apply is skipped."""
    root = ElementTree.Element("testsuites", _counts(results, name=subject.name))
    for theme, some in groupby(results, key=lambda result: result.check.theme):
        listed = list(some)
        suite = ElementTree.SubElement(root, "testsuite", _counts(listed, name=theme))
        for result in listed:
            _testcase(suite, subject, result)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def write_junit(path: Path, subject: Path, results: Sequence[Result]) -> None:
    """Raises OSError."""
    junit(subject, results).write(path, encoding="utf-8", xml_declaration=True)


def _counts(results: Sequence[Result], *, name: str) -> dict[str, str]:
    outcomes = [result.outcome for result in results]
    return {
        "name": name,
        "tests": str(len(results)),
        "failures": str(outcomes.count(Outcome.FAILED)),
        "errors": "0",
        "skipped": str(sum(each in SKIPPED for each in outcomes)),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }


def _testcase(suite: ElementTree.Element, subject: Path, result: Result) -> None:
    about = {
        "classname": f"{subject.name}.{result.check.theme}",
        "name": result.check.name,
        "time": f"{result.seconds:.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", about)
    if result.outcome is Outcome.FAILED:
        failure = ElementTree.SubElement(case, "failure", message=_text(result.reason))
        failure.text = _text("\n".join(_failure(result)))
    elif result.outcome in SKIPPED:
        reason = result.reason or result.outcome.value
        ElementTree.SubElement(case, "skipped", message=_text(reason))
    elif result.differences:
        out = ElementTree.SubElement(case, "system-out")
        out.text = _text("\n".join(f"as {each.shims}: {each.what}" for each in result.differences))


def _text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
