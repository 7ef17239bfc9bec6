"""A plugin of pytest's for the virtual machine: tells each test's outcome as soon as it is known.

It writes lines of JSON to the file, or raw disk, that ``TASKD_RESULTS`` names, and leaves out the
tests that the file of ``TASKD_PASSED`` names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_UNLIKE_PASSED = {"setup": "error", "call": "failed", "teardown": "error"}


class Reporter:
    """What was seen of the test that runs."""

    def __init__(self, target: Path, passed: frozenset[str]) -> None:
        self._target = os.open(target, os.O_WRONLY)
        self._passed = passed
        self._outcome, self._seconds, self._words = "passed", 0.0, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self._tell(collected=[item.nodeid for item in items])
        done = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds += report.duration
        if not report.passed and self._outcome == "passed":
            failed = _UNLIKE_PASSED[report.when or "call"]
            self._outcome = "skipped" if report.skipped else failed
            said = (f"--- {title} ---\n{words}" for title, words in report.sections)
            self._words = "\n".join((report.longreprtext, *said))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds = round(self._seconds, 1)
        self._tell(name=nodeid, outcome=self._outcome, seconds=seconds, words=self._words)
        self._outcome, self._seconds, self._words = "passed", 0.0, ""

    def _tell(self, **what: object) -> None:
        os.write(self._target, json.dumps(what).encode() + b"\n")
        os.fsync(self._target)


def pytest_configure(config: pytest.Config) -> None:
    passed = os.environ.get("TASKD_PASSED")
    names = frozenset(Path(passed).read_text().splitlines()) if passed else frozenset()
    config.pluginmanager.register(Reporter(Path(os.environ["TASKD_RESULTS"]), names))
