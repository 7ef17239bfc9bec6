"""Parsers of command lines, of which only those are made that somebody needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

__all__ = ["Add", "Commands", "Fill", "Parser"]

Fill = Callable[[argparse.ArgumentParser], object]
"""Gives a command's parser what it takes."""
Add = Callable[[str, str, Fill], None]
"""Adds a command: its name, what it does, and what gives its parser what it takes."""


class Parser(argparse.ArgumentParser):
    """Answers a word that is no command with the nearest one that is."""

    def error(self, message: str) -> NoReturn:
        import difflib
        import re

        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found is not None:
            near = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1)
            known = f"did you mean {near[0]}?" if near else f"choose from {found[2]}"
            message = f"there is no {found[1]}; {known}".replace("'", "")
        super().error(message)


class Commands:
    """The commands of a parser: all of them, or only the one that is given.

    To make all parsers takes as long as Python's start.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._commands: dict[str, tuple[str, Fill]] = {}

    def add(self, name: str, help: str, fill: Fill) -> None:  # noqa: A002
        self._commands[name] = help, fill

    def made(self, given: str | None) -> Parser:
        """The parser with the command that is `given`, or with all if that is none."""
        made = self._parser.add_subparsers(required=True, metavar="COMMAND")
        for name in [given] if given in self._commands else self._commands:
            words, fill = self._commands[name]
            fill(made.add_parser(name, help=words))
        return self._parser
