"""``taskd trace``: what clients, the daemon and its shims say to each other, as they say it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import anyio

from taskd.client import connect
from taskd.client.trace import entry
from taskd.errors import InvalidArgument, Unavailable
from taskd.plain import line
from taskd.printable import printable
from taskd.proto.taskd.v1 import FollowRequest

__all__ = ["Shown", "play", "timed", "trace"]

_ARROWS = {
    "CLIENT": "client ->",
    "TO_SHIM": "  -> shim",
    "FROM_SHIM": "  <- shim",
    "COMMAND": "   $ shim",
}
_WAITING_SECONDS = 1.0
"""After which a call that has not ended is worth a line."""
_SHOWN = 200
"""Characters of a message, unless all of it is to be shown."""


@dataclass
class Shown:
    """How it is shown: only calls that took at least `slow` nanoseconds; JSON; messages whole."""

    slow: int = 0
    as_json: bool = False
    whole: bool = False
    record: Path | None = None
    """Where it is written down, to be played back: made when there is something to write."""
    _copy: TextIO | None = None
    _going_on: dict[int, dict[str, Any]] = field(default_factory=dict)
    _waited: set[int] = field(default_factory=set)

    def show(self, entry: dict[str, Any]) -> Iterable[str]:
        """The lines for the beginning or the end of a call."""
        if self.record is not None:
            self._copy = self._copy or self.record.open("w")
            print(json.dumps(entry), file=self._copy, flush=True)
        if lost := entry.get("lost"):
            yield self._line({"lost": lost}, f"({lost} begins and ends were not heard)")
        took = entry.get("nanoseconds")
        if took is None:
            self._going_on[entry["call"]] = entry
            # Between the two lines of a client's call stand those of what it leads to.
            if not self.slow and (self.as_json or entry["way"] == "CLIENT"):
                yield self._line(entry, self._text(entry, "", entry.get("request")))
            return
        begun = self._going_on.pop(entry["call"], {})
        self._waited.discard(entry["call"])
        if took < self.slow:
            return
        outcome = entry.get("error") or entry.get("answer")
        if self.slow or entry["way"] != "CLIENT":
            outcome = {"request": begun.get("request"), "answer": outcome}
        yield self._line(entry, self._text(entry, f"{took / 1e6:.1f} ms", outcome, ended=True))

    def close(self) -> None:
        """Nothing more is to be written down."""
        if self._copy is not None:
            self._copy.close()

    def waiting(self, now: float) -> Iterable[str]:
        """A line for each call that has gone on for some time, once."""
        patience = max(_WAITING_SECONDS, self.slow / 1e9)
        for number, begun in self._going_on.items():
            if number not in self._waited and now - _moment(begun).timestamp() > patience:
                self._waited.add(number)
                if not self.as_json:
                    yield self._text(begun, "goes on", begun.get("request"))

    def _line(self, entry: dict[str, Any], text: str) -> str:
        return json.dumps(entry) if self.as_json else text

    def _text(self, entry: dict[str, Any], took: str, message: Any, *, ended: bool = False) -> str:
        about = "/".join(filter(None, (entry.get("namespace"), entry.get("task"))))
        arrow = "client <-" if ended and entry["way"] == "CLIENT" else _ARROWS[entry["way"]]
        method = entry["method"].split(".")[-1]
        words = line(message) if message not in (None, "") else ""
        if not self.whole and len(words) > _SHOWN:
            words = f"{words[:_SHOWN]}…"
        parts = (arrow, method, printable(about), entry.get("code"), words)
        return timed(_moment(entry), took, " ".join(filter(None, parts)))


def timed(moment: datetime, took: str, text: str) -> str:
    """A line of a trace: when, how long that took, and what it was."""
    clock = f"{moment.astimezone():%H:%M:%S.%f}"[:12]
    return f"{clock} {took:>10} {text}"


def _moment(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["begin"])


async def trace(
    address: Path, namespace: str, task: str, shown: Shown, limit: int | None = None
) -> None:
    """Print what is said from now on; `limit` is how many beginnings and ends there are to be.

    Raises `Unavailable` when the daemon goes away, `Unimplemented` for one that tells nothing.
    """
    request = FollowRequest(namespace=namespace, task=task)
    async with anyio.create_task_group() as group:
        group.start_soon(_show_waiting, shown)
        try:
            async with (
                connect(address, patience=0) as client,
                client.conversation(request) as conversation,
            ):
                print("taskd: listening", file=sys.stderr, flush=True)
                async for said in conversation:
                    _print(shown.show(entry(said)))
                    if limit is not None and (limit := limit - 1) <= 0:
                        break
        except Unavailable as exc:
            raise Unavailable(f"no daemon at {address}", verbatim=True) from exc
        group.cancel_scope.cancel()


async def _show_waiting(shown: Shown) -> None:
    while True:
        await anyio.sleep(_WAITING_SECONDS / 4)
        _print(shown.waiting(time.time()))


def play(
    file: Path, shown: Shown, namespace: str = "", task: str = "", limit: int | None = None
) -> None:
    """Print what was written down, as if one listened to that.

    Raises `InvalidArgument` for a file that is none of ours.
    """
    with file.open() as lines:
        for number, text in enumerate(lines, start=1):
            try:
                found = json.loads(text)
                _moment(found), _ARROWS[found["way"]], found["call"], found["method"]
            except (ValueError, KeyError, TypeError):
                raise InvalidArgument(
                    f"{file}: line {number} is nothing that taskd trace has written", verbatim=True
                ) from None
            if namespace not in ("", found.get("namespace", "")):
                continue
            if task not in ("", found.get("task", "")):
                continue
            _print(shown.show(found))
            if limit is not None and (limit := limit - 1) <= 0:
                return


def _print(lines: Iterable[str]) -> None:
    for each in lines:
        print(each)
    sys.stdout.flush()
