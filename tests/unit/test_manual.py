"""The manual page: it has all of the command line, whoever reads it finds nothing amiss."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd.cli.main import command_line

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man/taskd.1"
NOT_SHOWN = argparse._SubParsersAction, argparse._HelpAction
UNPACK = ROOT / "tests/harness/unpack.sh"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


@pytest.mark.parametrize("parser", parsers(command_line()), ids=lambda each: str(each.prog))
def test_every_argument_is_explained_and_in_the_page(parser: argparse.ArgumentParser) -> None:
    page = PAGE.read_text()
    begin = f"\n.SH COMMAND \\fI\\,'{parser.prog}'\\/\\fR\n".replace("-", r"\-")
    words = page if parser.prog == "taskd" else page.partition(begin)[2].partition("SH COMMAND")[0]
    plain = " ".join(re.sub(r"\\f.|\\,|\\/|\\", "", words).split())
    assert plain, f"make man: nothing about {parser.prog}"
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, NOT_SHOWN):
            continue
        assert action.help, f"{parser.prog}: {action.option_strings or action.dest}: no help"
        for text in (*action.option_strings, action.help):
            assert " ".join(text.split()) in plain, f"make man: {parser.prog}: {text}"


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
