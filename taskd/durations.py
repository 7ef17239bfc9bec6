"""Durations as Go writes them."""

from __future__ import annotations

import re

__all__ = ["seconds"]

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_ONE = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)"


def seconds(value: object) -> float:
    """A duration as containerd's configuration has it: ``"1m30s"``, ``"500ms"``; 0 alone is 0.

    Raises ValueError. Source: Go's ``time.ParseDuration``.
    """
    if value in (0, "0"):
        return 0.0
    if not isinstance(value, str) or not re.fullmatch(f"(?:{_ONE})+", value):
        raise ValueError(f'{value!r} is not a duration such as "1m30s"')
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_ONE, value))
