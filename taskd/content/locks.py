"""One writer at a time for each write. Source: containerd's ``content/local/locks.go``."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio

from taskd.errors import Unavailable

__all__ = ["Locks"]

PATIENCE = 0.5
"""Seconds to wait for a lock, about what containerd's ten attempts take."""


class Locks:
    def __init__(self) -> None:
        self._held: dict[str, tuple[anyio.Event, float]] = {}

    def held(self) -> frozenset[str]:
        return frozenset(self._held)

    async def acquire(self, key: str) -> None:
        """Hold the lock with that name. Raises `Unavailable` if another holds it and keeps it."""
        with anyio.move_on_after(PATIENCE):
            while key in self._held:
                await self._held[key][0].wait()
        if key in self._held:
            since = self._held[key][1]
            raise Unavailable(
                f"ref {key} locked for {time.time() - since:.9g}s "
                f"(since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S.%f +0000 UTC})"
            )
        self._held[key] = anyio.Event(), time.time()

    def release(self, key: str) -> None:
        released, _ = self._held.pop(key)
        released.set()
