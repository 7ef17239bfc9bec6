"""The long form: groups of tests in virtual machines, one after another. See docs/vm.md.

make vm                             # all that has not passed yet, on Debian 12, then on 13
make vm ONLY="docker v1" ON=13      # these groups alone, on one of them
make vm ONLY=tests/integration/test_crun.py VM="-k exec"    # any tests, and arguments of pytest
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from vm.image import (
    BOOKWORM,
    KEPT,
    KERNEL,
    REPOSITORY,
    TRIXIE,
    Debian,
    Image,
    bootstrap,
    build,
    unpack_user_mode,
)
from vm.machine import Report, read, run
from vm.plans import PACKAGES, Group, chosen

_SECONDS = 4 * 3600.0
_RELEASES = {"12": BOOKWORM, "13": TRIXIE}
# Where what the machines do is written down, which is no reason to do it again.
_IGNORED = ("docs/vm.md", "CHANGELOG.md")


class Place:
    """What is kept of a release and one state of the working tree: its disk, and results."""

    def __init__(self, debian: Debian, state: str) -> None:
        self._debian = debian
        self._folder = KEPT / f"{debian}-{state}"
        for other in KEPT.glob(f"{debian}-*"):
            if other != self._folder:
                shutil.rmtree(other)

    def image(self) -> Image:
        """The disk; it is made only once."""
        made = self._folder / "made"
        if not made.exists():
            print(f"{self._debian}: making the machine", flush=True)
            half = self._folder / "half-made"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            subprocess.run(["cp", "-a", self._base(), half / "tree"], check=True)
            build(self._debian, half / "tree", half)
            half.rename(made)
        return Image(made, unpack_user_mode())

    def _base(self) -> Path:
        """The release without the project, which is worth keeping for the next state."""
        packages = (KERNEL, *PACKAGES[self._debian.suite])
        digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
        base = KEPT / f"base-{self._debian}-{digest}"
        if not base.exists():
            half = base.with_name("half-made")
            shutil.rmtree(half, ignore_errors=True)
            bootstrap(self._debian, half, packages).rename(base)
        return base

    def runs(self, group: Group) -> Path:
        return self._folder / "runs" / group.kernel / group.name

    def done(self, group: Group) -> Report:
        """All that a group's runs have told so far; of each test the last counts."""
        reports = [read(each) for each in sorted(self.runs(group).glob("*/results"))]
        cases = {case.name: case for report in reports for case in report.cases}
        names = [name for report in reports for name in report.collected]
        seconds = sum(case.seconds for case in cases.values())
        return Report(list(cases.values()), list(dict.fromkeys(names)), seconds)

    def go_on(self, group: Group) -> None:
        """Run what has not passed yet."""
        done = self.done(group)
        passed = [case.name for case in done.cases if case.outcome == "passed"]
        if done.collected and set(passed) >= set(done.collected):
            return
        image = self.image()
        folder = self.runs(group) / f"{len(list(self.runs(group).glob('*'))):03}"
        folder.mkdir(parents=True)
        where = f"{self._debian}, {group.name}, {group.kernel}"
        print(f"{where}: {len(passed)} have passed; tail -f {folder}/console", flush=True)
        try:
            report = run(image, group, folder, _SECONDS, passed)
        except RuntimeError as error:
            print(f"{where}: {error}", flush=True)
            return
        (folder / "log").write_text(report.log)
        print(f"{where}: {report}", flush=True)


def _state() -> str:
    """A name for what the working tree has, committed or not."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    digest = hashlib.sha256()
    for name in sorted({each for each in names.decode().split("\0") if each}):
        path = REPOSITORY / name
        if path.is_file() and name not in _IGNORED:
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make vm")
    parser.add_argument("--on", action="append", choices=_RELEASES, help="Debian 12 or 13")
    parser.add_argument("--only", default="", help="groups, or files of tests")
    parser.add_argument("--kernel", choices=("user", "debian"), help="for all groups")
    asked, more = parser.parse_known_args()
    try:
        groups = chosen(asked.only)
    except ValueError as error:
        parser.error(str(error))
    if more:  # Some of a group's tests are not the group.
        name = "".join(each if each.isalnum() else "-" for each in " ".join(more))
        groups = tuple(replace(g, name=g.name + name, tests=(*g.tests, *more)) for g in groups)
    if asked.kernel:
        groups = tuple(replace(group, kernel=asked.kernel) for group in groups)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the table is printed then, too
    state = _state()
    places = {name: Place(_RELEASES[name], state) for name in asked.on or _RELEASES}
    good = True
    try:
        for place in places.values():
            for group in groups:
                place.go_on(group)
    finally:
        for name, place in places.items():
            for group in groups:
                report = place.done(group)
                print(f"Debian {name}  {group.kernel:6}  {group.name:12}  {report}")
                for case in report.bad:
                    print(f"    {case.outcome}: {case.name}")
                for test, reason in group.without.items():
                    print(f"    left out: {test}: {reason}")
                passed = len(report.cases) - len(report.bad)
                good = good and 0 < len(report.collected) == passed
    return 0 if good else 1


sys.exit(main())
