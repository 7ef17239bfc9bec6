"""What one run of a target tries, and what it has seen."""

from __future__ import annotations

import faulthandler
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

__all__ = ["Session", "damaged"]

_STUCK_SECONDS = 120
"""After which a case is taken for one that never ends: all stacks are shown then."""


class Session:
    """Cases until their number or the time is over. The same seed gives the same cases."""

    def __init__(
        self,
        name: str,
        *,
        cases: int = sys.maxsize,
        seconds: float = 3600.0,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self.random = random.Random(self.seed)
        self.outcomes: Counter[str] = Counter()
        self.tried = self.bytes = 0
        self.slowest = 0.0
        self._cases = cases
        self._seconds = seconds

    def cases(self) -> Iterator[int]:
        """The number of each case."""
        end = time.monotonic() + self._seconds
        renewed = 0.0
        try:
            while self.tried < self._cases and (begin := time.monotonic()) < end:
                if begin > renewed + 1:
                    faulthandler.dump_traceback_later(_STUCK_SECONDS, exit=True)
                    renewed = begin
                yield self.tried
                self.tried += 1
                self.slowest = max(self.slowest, time.monotonic() - begin)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def saw(self, outcome: str, size: int) -> None:
        """Note what became of a case of `size` bytes."""
        self.outcomes[outcome] += 1
        self.bytes += size

    def __str__(self) -> str:
        outcomes = ", ".join(
            f"{outcome} {count:,}" for outcome, count in self.outcomes.most_common()
        )
        return (
            f"{self.name}: {self.tried:,} tried, {self.bytes / 1e6:.1f} MB, "
            f"slowest {self.slowest:.2f} s, seed {self.seed}: {outcomes}"
        )


def damaged(choose: random.Random, data: bytes, most: int = 6) -> bytes:
    """`data`, in up to `most` places not as it was."""
    found = bytearray(data)
    for _ in range(choose.randint(0, most)):
        at = choose.randint(0, len(found))
        end = min(len(found), at + choose.choice((1, 1, 2, 4, 8, 64)))
        match choose.randrange(6):
            case 0:
                found[at:end] = choose.randbytes(end - at)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = choose.randbytes(choose.choice((1, 2, 4, 16)))
            case 3:
                found[at:at] = found[at:end]
            case 4:
                found[at:end] = choose.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * (end - at)
            case 5:
                del found[end:]
    return bytes(found)
