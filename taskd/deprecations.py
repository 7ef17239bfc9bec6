"""What clients have used that is deprecated. Source: containerd's ``pkg/deprecation``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Deprecations", "Warned"]

_INSTEAD = "use `io.containerd.runc.v2`; containerd 2 does not have it any more"

_RUNTIMES = {
    "io.containerd.runtime.v1.linux": "runtime-v1",
    "io.containerd.runc.v1": "runtime-runc-v1",
}


class Warned(NamedTuple):
    """`last` is when it was used last, in nanoseconds since the epoch."""

    id: str
    message: str
    last: int


class Deprecations:
    """Since this daemon was started."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def used(self, runtime: str) -> bool:
        """A task is made with `runtime`; returns whether that is deprecated."""
        if runtime not in _RUNTIMES:
            return False
        self._last[runtime] = time.time_ns()
        return True

    def all(self) -> Sequence[Warned]:
        """By the order in which they were first used."""
        return [
            Warned(
                f"io.containerd.deprecation/{_RUNTIMES[runtime]}",
                f"The runtime `{runtime}` is deprecated since containerd 1.4: {_INSTEAD}.",
                last,
            )
            for runtime, last in self._last.items()
        ]
