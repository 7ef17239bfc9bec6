"""Pages of docs whose blocks are what a reader writes and types: files, and commands.

A file's block comes after its name in backquotes; a command is a line after ``$`` in a block of
``console``, with the machine's name before that where there are several, and ``…`` in its output
stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Command", "File", "blocks", "pattern"]

_BLOCK = re.compile(
    r"(?:^`(?P<path>[^`\n]+)`\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class File:
    path: str
    text: str


@dataclass(frozen=True)
class Command:
    line: str
    shown: str
    """Its output in the document."""
    machine: str = ""


def blocks(document: Path) -> Iterator[File | Command]:
    """The files that a reader writes, and the commands that they type, in this order."""
    for block in _BLOCK.finditer(document.read_text()):
        if block["kind"] != "console":
            assert block["path"], f"a block that nobody runs:\n{block['text']}"
            yield File(block["path"], block["text"])
            continue
        first, *parts = re.split(r"^(\w*)\$ ", block["text"], flags=re.MULTILINE)
        assert not first
        for machine, command in zip(parts[::2], parts[1::2], strict=True):
            line, _, shown = command.partition("\n")
            yield Command(line, shown, machine)


def pattern(shown: str) -> str:
    """A regular expression for such an output."""
    lines = (re.escape(line.rstrip()).replace("…", ".*") for line in shown.splitlines())
    return r"\s*\n".join(lines) + r"\s*"
