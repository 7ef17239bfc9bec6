"""One writer at a time for each write. Source: containerd 2's ``content/local/locks.go``."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from taskd.errors import Unavailable

__all__ = ["Locks"]


class Locks:
    def __init__(self) -> None:
        self._held: dict[str, float] = {}
        self._leaving: dict[str, asyncio.Event] = {}

    def held(self) -> frozenset[str]:
        return frozenset(self._held)

    async def acquire(self, key: str) -> None:
        """Hold the lock with that name. Raises `Unavailable` if another holds it.

        Whoever is about to release it is waited for: a client that has gone may come again at once.
        """
        while (leaving := self._leaving.get(key)) is not None:
            await leaving.wait()
        since = self._held.get(key)
        if since is not None:
            raise Unavailable(
                f"ref {key} locked for {time.time() - since:.9g}s "
                f"(since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S.%f +0000 UTC})"
            )
        self._held[key] = time.time()

    def leave(self, key: str) -> None:
        """Say that it will be released as soon as what it is for has been put away."""
        self._leaving.setdefault(key, asyncio.Event())

    def release(self, key: str) -> None:
        del self._held[key]
        if (leaving := self._leaving.pop(key, None)) is not None:
            leaving.set()
