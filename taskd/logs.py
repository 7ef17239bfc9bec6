"""The daemon's log, on its standard error."""

from __future__ import annotations

import logging
from types import TracebackType

from taskd.printable import printable

__all__ = ["LEVELS", "TRACE", "set_up"]

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


def set_up(level: str) -> None:
    """Log what is at least as grave as `level`, of containerd's names.

    Of others' libraries only what is worth knowing: with more, HTTP/2's writes a page about each
    call.
    """
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=max(LEVELS[level], logging.INFO), handlers=[handler])
    logging.getLogger("taskd").setLevel(LEVELS[level])


class _Formatter(logging.Formatter):
    """Escapes what is not to be shown as it is: names, labels and errors are somebody else's."""

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
