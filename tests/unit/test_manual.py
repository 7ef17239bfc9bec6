"""The manual page: what is in it is there, and whoever reads it finds nothing amiss."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from taskd.cli.main import command_line

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man/taskd.1"
UNPACK = ROOT / "tests/harness/unpack.sh"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def test_what_is_in_it_is_there() -> None:
    page = PAGE.read_text().replace("\\-", "-")
    there = {each.prog: each.format_help() for each in parsers(command_line())}
    shown = re.split(r"\n\.SH (?:COMMAND|OPTIONS) \\fI\\,'(taskd [a-z -]+)'\\/\\fR\n", page)
    assert len(shown) > 60
    for command, text in zip(shown[1::2], shown[2::2], strict=True):
        assert command in there, "make man"
        for option in re.findall(r"^\\fB(--[a-z-]+)", text.partition("\n.SH")[0], re.MULTILINE):
            assert option in there[command], f"make man: {command} {option}"


def test_it_is_clean() -> None:
    tree = ROOT / ".cache/mandoc"
    subprocess.run(["sh", str(UNPACK), "bookworm", "mandoc", str(tree)], check=True)
    mandoc = tree / "usr/bin/mandoc"
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", PAGE], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    shown = subprocess.run([mandoc, PAGE], capture_output=True, text=True, check=True).stdout
    assert "its command line\n" in re.sub(".\b", "", shown)


def test_it_is_in_what_is_built(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    (source,) = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("share/man/man1/taskd.1"))
        assert archive.read(name) == PAGE.read_bytes()
    with tarfile.open(source) as archive:
        assert any(each.endswith("/man/taskd.1") for each in archive.getnames())
