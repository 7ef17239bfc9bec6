"""The daemon's log, on its standard error: text, JSON, or what systemd's journal makes of lines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Literal

from taskd.printable import printable

__all__ = ["LEVELS", "TRACE", "Format", "announce", "set_up"]

TRACE = 5
"""Below DEBUG: each call."""

LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
"""containerd's names."""

Format = Literal["text", "json"]

_WORDS = {TRACE: "trace", logging.WARNING: "warning", logging.CRITICAL: "fatal"}
"""As containerd's JSON has them, where Python has another word."""
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""sd-daemon(3); below are those of debugging (7)."""


def set_up(level: str, form: Format = "text") -> None:
    """Log what is at least as grave as `level`, of containerd's names.

    Of others' libraries only what is worth knowing: with more, HTTP/2's writes a page about each
    call. Text that goes to the journal has priorities, and no times: it has its own.
    """
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=max(LEVELS[level], logging.INFO), handlers=[handler])
    logging.getLogger("taskd").setLevel(LEVELS[level])


def announce(text: str) -> None:
    """A line that is there whatever the level: the daemon serves, or stops."""
    record = logging.LogRecord("taskd", logging.INFO, "", 0, text, None, None)
    for handler in logging.getLogger().handlers:
        handler.handle(record)


def _formatter(form: Format) -> logging.Formatter:
    if form == "json":
        return _Json()
    if _is_journal(sys.stderr.fileno(), os.environ):
        return _Journal("%(name)s: %(message)s")
    return _Text("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def _is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether systemd's journal reads what is written to it: systemd.exec(5), JOURNAL_STREAM."""
    found = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _moment(record: logging.LogRecord) -> str:
    """RFC 3339 with milliseconds and this machine's time zone."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class _Json(logging.Formatter):
    """An object a line, with logrus's keys, as containerd has them."""

    def format(self, record: logging.LogRecord) -> str:
        level = _WORDS.get(record.levelno, record.levelname.lower())
        entry = {"time": _moment(record), "level": level, "logger": record.name}
        entry["msg"] = record.getMessage()
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Text(logging.Formatter):
    """Escapes what is not to be shown as it is: names, labels and errors are somebody else's."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _moment(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        # Nor does any line of it look like one of the log's own.
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {printable(line)}" for line in lines)


class _Journal(_Text):
    """The priority before each line, for each of them is an entry of its own."""

    def format(self, record: logging.LogRecord) -> str:
        number = next((each for level, each in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).split("\n"))
