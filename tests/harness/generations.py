"""containerd's generations: the system's own, and newer ones unpacked beside it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["GENERATIONS", "Generation", "criu"]

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"


@dataclass(frozen=True)
class Generation:
    """A containerd with its own shims, from a suite of Debian's."""

    name: str
    suite: str = ""

    def binaries(self) -> Path | None:
        """Folder of its programs, fetched if need be; None for what the system has."""
        return _unpacked(self.suite) if self.suite else None


GENERATIONS = (Generation("1.6"), Generation("1.7", "trixie"), Generation("2", "sid"))
"""containerd 1.6.20, 1.7.24, and the newest 2.x that Debian has."""


@cache
def _unpacked(suite: str) -> Path:
    tree = _CACHE / f"containerd-{suite}"
    subprocess.run(["sh", str(_HERE / "unpack.sh"), suite, "containerd", str(tree)], check=True)
    return tree / "usr/bin"


@cache
def criu() -> Path:
    """Folder of a CRIU that works on this kernel."""
    done = subprocess.run(
        ["sh", str(_HERE / "criu.sh")], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.strip())
