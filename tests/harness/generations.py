"""containerd's generations: the system's own, and newer ones unpacked beside it."""

from __future__ import annotations

import subprocess
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["GENERATIONS", "OWN", "Generation", "criu", "own_shim"]

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"


@dataclass(frozen=True)
class Generation:
    """A containerd with its own shims, from a suite of Debian's."""

    name: str
    suite: str = ""
    own_shim: bool = False
    """taskd runs its own ``io.taskd.oci.v1`` where containerd runs its shim."""

    def __str__(self) -> str:
        return f"{self.name}, own shim" if self.own_shim else self.name

    def binaries(self) -> Path | None:
        """Folder of its programs, fetched if need be; None for what the system has."""
        return _unpacked(self.suite) if self.suite else None


GENERATIONS = (Generation("1.6"), Generation("1.7", "trixie"), Generation("2", "sid"))
"""containerd 1.6.20, 1.7.24, and the newest 2.x that Debian has."""

OWN = Generation("1.7", "trixie", own_shim=True)
"""containerd 1.7.24 with its shim beside taskd with taskd's."""


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


def own_shim(folder: Path) -> Path:
    """A folder for PATH in which ``io.containerd.runc.v2`` is taskd's own shim for runc."""
    folder.mkdir(parents=True, exist_ok=True)
    shim = Path(sysconfig.get_path("scripts"), "containerd-shim-oci-v1")
    with suppress(FileExistsError):
        (folder / "containerd-shim-runc-v2").symlink_to(shim)
    return folder
