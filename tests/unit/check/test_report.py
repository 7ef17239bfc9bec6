"""What is shown of results."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from taskd.check import CHECKS, PROGRAMS
from taskd.check.differences import DIFFERENCES
from taskd.check.registry import Check, Difference, Failed, Outcome, Result
from taskd.check.report import listing, table, write_junit

SHIM = Path("/opt/containerd-shim-thing-v1")
OLD = Difference("containerd 1.6's", "does it otherwise")


async def _play(case: object) -> None: ...


def result(theme: str, name: str, outcome: Outcome, **rest: object) -> Result:
    place = rest.pop("place", None)
    check = Check(theme, name, _play, place=place)  # type: ignore[arg-type]
    return Result(check, outcome, seconds=0.25, **rest)  # type: ignore[arg-type]


RESULTS = [
    result("events", "each once", Outcome.PASSED),
    result("events", "in order", Outcome.KNOWN, differences=(OLD,)),
    result("events", "oom", Outcome.MISSING),
    result("events", "of execs", Outcome.NOT_APPLICABLE, reason="Exec is not implemented"),
    result("by state", "none: Start", Outcome.PASSED, place=("Start", "none")),
    result(
        "by state", "running: Start", Outcome.KNOWN, differences=(OLD,), place=("Start", "running")
    ),
    result("by state", "running: Wait", Outcome.MISSING, place=("Wait", "running")),
    result(
        "leaks",
        "nothing is left",
        Outcome.FAILED,
        reason="Delete: a process",
        failure=Failed("Delete", "nothing", "a process\nand a \x1b[31mmount"),
        calls=("Start(id=one) -> pid=7", "Delete(id=one) -> OK"),
        log=("level=info msg=bye",),
    ),
]

TABLE = """\
containerd-shim-thing-v1 (/opt/containerd-shim-thing-v1)

events
  ok        each once
  ok [1]    in order
  absent    oom
  n/a       of execs  (Exec is not implemented)

by state
         none      running
  Start  ok        ok [1]
  Wait             absent

leaks
  FAILED    nothing is left

known differences between shims, which are no failures
  [1] containerd 1.6's: does it otherwise

FAILED  leaks: nothing is left
  called    Delete
  expected  nothing
  came      a process
            and a \\x1b[31mmount
  the last calls
    Start(id=one) -> pid=7
    Delete(id=one) -> OK
  the shim's log
    level=info msg=bye

8 checks in 41 s: 4 passed (2 in a known way), 1 failed, 2 not implemented, 1 not applicable"""


def test_table() -> None:
    assert table(SHIM, RESULTS, 41.3) == TABLE


def test_table_without_anything_to_explain() -> None:
    assert table(SHIM, RESULTS[:1], 1).splitlines() == [
        "containerd-shim-thing-v1 (/opt/containerd-shim-thing-v1)",
        "",
        "events",
        "  ok        each once",
        "",
        "1 checks in 1 s: 1 passed, 0 failed",
    ]


def test_junit(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    write_junit(path, SHIM, RESULTS)
    root = ElementTree.parse(path).getroot()
    assert root.attrib == {
        "name": SHIM.name,
        "tests": "8",
        "failures": "1",
        "errors": "0",
        "skipped": "3",
        "time": "2.000",
    }
    assert [(suite.get("name"), suite.get("tests")) for suite in root] == [
        ("events", "4"),
        ("by state", "3"),
        ("leaks", "1"),
    ]
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert cases["each once"].attrib["classname"] == "containerd-shim-thing-v1.events"
    assert len(cases["each once"]) == 0
    assert cases["in order"].findtext("system-out") == "as containerd 1.6's: does it otherwise"
    assert [skipped.get("message") for name in ("oom", "of execs") for skipped in cases[name]] == [
        "not implemented",
        "Exec is not implemented",
    ]
    (failure,) = cases["nothing is left"]
    assert failure.tag == "failure"
    assert failure.get("message") == "Delete: a process"
    # What a shim has written may hold what a terminal obeys, and XML cannot hold.
    assert "and a \\x1b[31mmount" in (failure.text or "")
    assert "level=info msg=bye" in (failure.text or "")


def test_listing() -> None:
    assert listing(each.check for each in RESULTS[:2]) == "events: each once\nevents: in order"


def test_the_documentation_names_each_known_difference() -> None:
    text = (Path(__file__).parents[3] / "docs/shim-check.md").read_text()
    for each in DIFFERENCES:
        assert f"| {each.shims} | {each.what} |" in text


def test_the_documentation_names_each_theme() -> None:
    text = (Path(__file__).parents[3] / "docs/shim-check.md").read_text()
    for theme in {check.theme for check in CHECKS}:
        assert f"\n| {theme} | " in text


def test_the_documentation_names_each_program() -> None:
    text = (Path(__file__).parents[3] / "docs/shim-check.md").read_text()
    for each in PROGRAMS.values():
        assert f"| `{each.usage}` | {each.does} |\n" in text
