"""One writer at a time for each write. Source: containerd 2's ``content/local/locks.go``."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from taskd.errors import Unavailable

__all__ = ["Locks"]


class Locks:
    def __init__(self) -> None:
        self._held: dict[str, float] = {}

    def held(self) -> frozenset[str]:
        return frozenset(self._held)

    def acquire(self, key: str) -> None:
        """Hold the lock with that name. Raises `Unavailable` if another holds it."""
        since = self._held.get(key)
        if since is not None:
            raise Unavailable(
                f"ref {key} locked for {time.time() - since:.9g}s "
                f"(since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S.%f +0000 UTC})"
            )
        self._held[key] = time.time()

    def release(self, key: str) -> None:
        del self._held[key]
