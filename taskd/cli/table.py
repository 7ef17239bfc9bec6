"""Tables: with colours and within its width on a terminal, aligned columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from taskd.printable import printable

__all__ = ["ago", "show", "sized"]

_STYLES = {"Up": "green", "Exited": "dim", "Created": "yellow", "Paused": "cyan", "!!": "red"}
_GAP = 3
_SHRINKING = {"IMAGE", "COMMAND"}
_SHRUNK = 8
"""Characters that are left of these where there is no room."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: bool = False) -> None:
    """Print rows under their headings. `whole` cells are not cut where a terminal ends."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty() or whole:
        widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
        for row in (columns, *shown):
            cells = (cell.ljust(width + _GAP) for cell, width in zip(row, widths, strict=True))
            print("".join(cells).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        # What may wrap is what rich takes room from; its cells do not, so they are cut.
        table.add_column(name, no_wrap=name not in _SHRINKING, min_width=_SHRUNK)
    for row in shown:
        styled = ((cell, _STYLES.get(cell.split(" ")[0], "")) for cell in row)
        table.add_row(
            *(Text(cell, style, no_wrap=True, overflow="ellipsis") for cell, style in styled)
        )
    Console().print(table)


def sized(number: float) -> str:
    """Bytes for people: ``1.5MiB``."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.1f}{unit}"
        number /= 1024
    raise AssertionError


def ago(seconds: float) -> str:
    """A duration in Docker's words: ``5 minutes``."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return "Less than a second"
    for size, word in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count != 1 else ''}"
    raise AssertionError
