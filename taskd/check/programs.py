"""What containers of checks run: each is a line for ``/bin/sh``, or an author's own program."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from taskd import rooted
from taskd.check.registry import NotApplicable
from taskd.errors import InvalidArgument

__all__ = ["PROGRAMS", "Own", "Program", "own_programs"]


Own: TypeAlias = "Mapping[str, str]"
"""Paths of an author's programs by their names, as containers see them."""


@dataclass(frozen=True)
class Program:
    """A program; called, the same with arguments."""

    usage: str
    does: str
    script: str
    """The same for a shell."""
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.usage.split()[0]

    def __call__(self, *arguments: object) -> Program:
        return replace(self, arguments=tuple(map(str, arguments)))

    def __str__(self) -> str:
        return " ".join((self.name, *self.arguments))

    def command(self, own: Own | None) -> list[str]:
        """What a container is to run.

        Raises `NotApplicable` for a program that is not among the author's `own`.
        """
        if own is None:
            return ["/bin/sh", "-c", self.script, self.name, *self.arguments]
        if self.name not in own:
            raise NotApplicable(f"no program {self.name} is given")
        return [own[self.name], *self.arguments]


SLEEP = Program("sleep", "runs for 1000 seconds", "exec sleep 1000")
EXIT = Program(
    "exit STATUS [SECONDS]",
    "ends with that status, after so many seconds",
    'test $# -lt 2 || sleep "$2"; exit "$1"',
)
ECHO = Program(
    "echo TEXT [ERROR [STATUS]]",
    "writes a line to its standard output, one to its standard error, and ends with that status",
    'echo "$1"; test $# -lt 2 || echo "$2" >&2; exit "${3:-0}"',
)
CAT = Program(
    "cat [STATUS]",
    "copies its standard input to its output, at once, until the end, and ends with that status",
    'cat; exit "${1:-0}"',
)
ZEROS = Program("zeros NUMBER", "writes so many zero bytes", 'exec head -c "$1" /dev/zero')
TICK = Program(
    "tick", "writes a line that says x 50 times a second", "while :; do echo x; sleep 0.02; done"
)
WORDS = Program(
    "words ARGUMENT...",
    "writes its arguments, each with a comma after it, and the variable A, as one line",
    'printf \'%s,\' "$@"; echo "$A"',
)
PWD = Program("pwd", "writes its working folder as a line", "exec pwd")
TERMINAL = Program(
    "terminal",
    "writes the line terminal if its input and output are one, reads a line, writes it to its "
    "standard error with got before it, and ends with 4",
    "test -t 0 && test -t 1 && echo terminal; read line; echo got $line >&2; exit 4",
)
SIZE = Program(
    "size",
    "writes, for each line of input, size and the rows and columns of its terminal",
    "while read line; do echo size $(stty size); done",
)
TRAP = Program(
    "trap",
    "writes the line ready, and, at SIGUSR1, the line ended, and ends with 7",
    "trap 'echo ended; exit 7' USR1; echo ready; while :; do sleep 0.05; done",
)
RAISE = Program("raise NUMBER", "ends by that signal, sent to itself", 'kill -"$1" $$')
SPAWN = Program(
    "spawn NUMBER",
    "starts so many processes with sleep in their command lines, and waits for them",
    # Without `seq`, which would be a process more for a moment.
    'left=$1; while test "$left" -gt 0; do sleep 1000 & left=$((left - 1)); done; wait',
)
LEAVE = Program(
    "leave TEXT",
    "starts a process that runs on, whatever becomes of the terminal, writes a line, and ends",
    "trap '' HUP; sleep 1000 & echo \"$1\"",
)
ALLOCATE = Program(
    "allocate MIB",
    "uses so much memory at a time, and ends with 0 if it can",
    'head -c "$(($1 + 100))m" /dev/zero | tail -c "$1m" >/dev/null',
)

PROGRAMS: Mapping[str, Program] = {
    each.name: each for each in vars().values() if isinstance(each, Program)
}
"""All of them by their names."""


def own_programs(given: Iterable[str], rootfs: Path | None = None) -> Own | None:
    """An author's programs of the form ``sleep=/sleep``; None if none is given.

    Raises `InvalidArgument` for one that no check runs, whose path is not absolute, or, with a
    `rootfs`, that is not in there.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if name not in PROGRAMS:
            near = difflib.get_close_matches(name, PROGRAMS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PROGRAMS)}"
            raise InvalidArgument(f"no check runs a program {name}; {hint}", verbatim=True)
        if not equals or not path.startswith("/"):
            raise InvalidArgument(
                f"program {each}: a path in the root filesystem is missing, as in {name}=/{name}",
                verbatim=True,
            )
        if rootfs is not None:
            try:
                os.close(rooted.open_file(rootfs, path))
            except OSError as exc:
                raise InvalidArgument(
                    f"program {each}: {path} in {rootfs}: {(exc.strerror or str(exc)).lower()}",
                    verbatim=True,
                ) from None
        found[name] = path
    return found or None
