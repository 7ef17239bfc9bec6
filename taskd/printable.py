"""Text of somebody else's, for a log or a terminal."""

from __future__ import annotations

__all__ = ["printable", "quoted"]


def printable(text: str) -> str:
    """`text` in one line, with an escape sequence for whatever would not show as it is.

    What could move a cursor, set a title or turn the order of letters is a sequence of Python's,
    such as ``\\x1b`` or ``\\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def quoted(text: str) -> str:
    """`text` in quotes, as Go's ``%q`` has it."""
    return f'"{printable(text.translate(_ESCAPED))}"'


_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\""})
