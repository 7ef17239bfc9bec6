"""containerd's generations: the system's own, and others' unpacked beside it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["COMPARED", "GENERATIONS", "Generation", "criu", "crun", "own_shim"]

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"


@dataclass(frozen=True)
class Generation:
    """A containerd with its own shims, from a suite of Debian's."""

    name: str
    suite: str
    own_shim: bool = False
    """taskd runs its own ``io.taskd.oci.v1`` where containerd runs its shim."""

    def __str__(self) -> str:
        return f"{self.name}, own shim" if self.own_shim else self.name

    def binaries(self) -> Path | None:
        """Folder of its programs, fetched if need be; None for what the system has."""
        return None if self._is_systems else _unpacked(self.suite)

    @property
    def is_here(self) -> bool:
        """Whether there is any way to it."""
        return self._is_systems or not OFFLINE

    @property
    def _is_systems(self) -> bool:
        return platform.freedesktop_os_release().get("VERSION_CODENAME") == self.suite


OFFLINE = "TASKD_VM" in os.environ
"""In the virtual machine of `tests/vm` nothing can be fetched: what the system has must do."""

_ALL = (Generation("1.6", "bookworm"), Generation("1.7", "trixie"), Generation("2", "sid"))

GENERATIONS = tuple(each for each in _ALL if each.is_here)
"""containerd 1.6.20, 1.7.24, and the newest 2.x that Debian has."""

_OWN = Generation("1.7", "trixie", own_shim=True)

COMPARED = (*GENERATIONS, *(each for each in (_OWN,) if each.is_here))
"""What taskd is compared with; 1.7.24 once more, with its shim beside taskd with taskd's."""


@cache
def _unpacked(suite: str) -> Path:
    tree = _CACHE / f"containerd-{suite}"
    subprocess.run(["sh", str(_HERE / "unpack.sh"), suite, "containerd", str(tree)], check=True)
    return tree / "usr/bin"


@cache
def criu() -> Path:
    """Folder of a CRIU that works on this kernel: Debian 12's own, 3.17, fails on newer ones."""
    if OFFLINE and (own := shutil.which("criu")):
        return Path(own).parent
    return _loaded("trixie", "criu")


def crun() -> Path:
    """Folder of the newest crun that Debian has."""
    return _loaded("sid", "crun")


@cache
def _loaded(suite: str, program: str) -> Path:
    """Folder of a program of another suite's, which is in the package of that name."""
    done = subprocess.run(
        ["sh", str(_HERE / "loaded.sh"), suite, program, program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(done.stdout.strip())


def own_shim(folder: Path) -> Path:
    """A folder for PATH in which ``io.containerd.runc.v2`` is taskd's own shim for runc."""
    folder.mkdir(parents=True, exist_ok=True)
    shim = Path(sysconfig.get_path("scripts"), "containerd-shim-oci-v1")
    with suppress(FileExistsError):
        (folder / "containerd-shim-runc-v2").symlink_to(shim)
    return folder
