"""The time by which things expire: the machine's, but without sudden steps forward.

A wall clock can be set: by hand, by NTP after a boot, on a machine that comes out of a snapshot.
What expires by it would then all go at once, and would still be gone when the clock is right again.
So a step is followed at a day for each hour, which leaves time to put it right; a step back is
followed at once, as it removes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import anyio

__all__ = ["Clock"]

log = logging.getLogger(__name__)

_RATE = 24
"""How much faster than time itself a step is followed."""
_NOTICEABLE_SECONDS = 60.0
_KEEP_SECONDS = 60.0


class Clock:
    """Use one for all that expires, with `keep` beside it."""

    def __init__(self, file: Path | None = None) -> None:
        """`file` keeps the time from one daemon to the next, unless the machine is started anew."""
        self._file = file
        self._now = time.time_ns()
        self._passed = _uptime()
        self._stepped = False
        if file is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(file.read_text())
                if kept["boot"] == _boot():
                    self._now, self._passed = int(kept["now"]), int(kept["uptime"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.save()

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        wall, uptime = time.time_ns(), _uptime()
        self._now = min(wall, self._now + (uptime - self._passed) * (1 + _RATE))
        self._passed = uptime
        ahead = (wall - self._now) / 1e9
        if ahead > _NOTICEABLE_SECONDS and not self._stepped:
            log.warning(
                "the clock was set forward by %.0f s: what expires does so by and by, "
                "as if a day passed in an hour",
                ahead,
            )
        self._stepped = ahead > _NOTICEABLE_SECONDS
        return self._now

    async def keep(self) -> None:
        """Save the time again and again, for ever."""
        while True:
            try:
                self.save()
            except OSError as exc:
                log.error("the time is not kept for the next daemon: %s", exc)
            await anyio.sleep(_KEEP_SECONDS)

    def save(self) -> None:
        """Note the time down for the next daemon. Raises OSError."""
        if self._file is not None:
            kept = {"boot": _boot(), "now": self.now(), "uptime": self._passed}
            self._file.write_text(json.dumps(kept))


def _uptime() -> int:
    """Nanoseconds, with those that the machine has slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _boot() -> str:
    """Names the time from one start of the machine to the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
