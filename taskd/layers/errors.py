"""What can be wrong with a layer, in words that reach the client."""

from __future__ import annotations

import os

__all__ = ["UNEXPECTED_EOF", "Exhausted", "ParentsWanted", "Refused", "failed"]

_LONGEST = 1000
"""Characters of a message: a name may have a megabyte."""

UNEXPECTED_EOF = "unexpected EOF"
"""Go's words for what ends too early."""


class Refused(Exception):
    """The layer cannot be unpacked, or the changes cannot be told."""

    def __str__(self) -> str:
        words = super().__str__()
        return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


class Exhausted(Refused):
    """It goes beyond a limit."""


class ParentsWanted(Exception):
    """The layer names no folder of its own for what is in it: it is as in the layers below."""


def failed(doing: str, error: OSError) -> Refused:
    """An OSError in words as Go's: ``open /a: no such file or directory``."""
    number = error.errno
    words = os.strerror(number).lower() if number else str(error)
    return Refused(f"{doing}: {words}" if doing else words)
