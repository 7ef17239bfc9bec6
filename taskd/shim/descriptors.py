"""Who closes which descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["Descriptors"]


class Descriptors:
    """Open descriptors of one owner: each is closed once, for its number may be another's then."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        return iter(self._open)

    def keep(self, descriptor: int) -> int:
        """Own one that has been opened; it is returned."""
        self._open.add(descriptor)
        return descriptor

    def give(self, descriptor: int) -> int:
        """Let another own it, who closes it; it is returned."""
        self._open.remove(descriptor)
        return descriptor

    def drop(self, *descriptors: int) -> None:
        """Close those of them that are still open and its own."""
        for descriptor in descriptors:
            if descriptor in self._open:
                self._open.remove(descriptor)
                os.close(descriptor)

    def close(self) -> None:
        """Close all that are left. Idempotent."""
        self.drop(*tuple(self._open))
