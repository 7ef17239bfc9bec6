"""How much more time than usual tests give to whatever they wait for.

Their deadlines were chosen for machines that people work on. In a virtual machine in software,
which shares its processors with others, each step takes some ten times longer: see docs/vm.md.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import anyio

__all__ = ["PATIENCE", "SLOWER", "stretch_deadlines"]

SLOWER = float(os.environ.get("TASKD_SLOWER", "1"))
"""What the deadlines of tests are multiplied by."""

PATIENCE = """
[timeouts]
"io.containerd.timeout.task.state" = "60s"
"io.containerd.timeout.shim.load" = "60s"
"io.containerd.timeout.shim.cleanup" = "60s"
"io.containerd.timeout.shim.shutdown" = "60s"
"io.taskd.timeout.shim.start" = "300s"
"""
"""Settings of a daemon on such a machine, taskd and containerd alike."""

_Returned = TypeVar("_Returned")


def stretch_deadlines() -> None:
    """Multiply by `SLOWER` the deadlines that this process sets through anyio and `subprocess`."""
    if SLOWER == 1:
        return
    anyio.fail_after = _stretched(anyio.fail_after, "delay", 0)
    anyio.move_on_after = _stretched(anyio.move_on_after, "delay", 0)
    subprocess.Popen.wait = _stretched(subprocess.Popen.wait, "timeout", 1)  # type: ignore[method-assign]
    subprocess.Popen.communicate = _stretched(subprocess.Popen.communicate, "timeout", 2)  # type: ignore[method-assign]


def _stretched(
    function: Callable[..., _Returned], name: str, place: int
) -> Callable[..., _Returned]:
    """The function, with the seconds that it is given, if any, multiplied."""

    @wraps(function)
    def call(*args: object, **named: object) -> _Returned:
        given = list(args)
        if isinstance(seconds := named.get(name), int | float):
            named[name] = seconds * SLOWER
        elif len(given) > place and isinstance(seconds := given[place], int | float):
            given[place] = seconds * SLOWER
        return function(*given, **named)

    return call
