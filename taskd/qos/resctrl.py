"""The kernel's resctrl file system: what it can divide, and the groups that it divides it among.

Sources: the kernel's ``Documentation/arch/x86/resctrl.rst``; goresctrl's ``pkg/rdt/info.go``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from taskd.errors import FailedPrecondition

__all__ = ["Bandwidth", "Cache", "Resctrl", "mounted", "read"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cache:
    """Caches of one level, which can be divided by the bits of a mask."""

    ids: tuple[int, ...]
    mask: int
    """Every bit that there is."""
    min_bits: int
    """How many bits a share must have at least."""
    split: bool
    """Whether code and data have masks of their own (CDP)."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Memory bandwidth, in percent, or in MB/s where resctrl is mounted with ``mba_MBps``."""

    ids: tuple[int, ...]
    minimum: int
    """Percent."""
    mbps: bool


@dataclass(frozen=True, slots=True)
class Resctrl:
    path: Path
    caches: Mapping[str, Cache]
    """By level, ``L2`` and ``L3``; only those that can be divided."""
    bandwidth: Bandwidth | None

    def write(self, group: str, schemata: str) -> None:
        """Give a group its shares, making it if need be; the empty name is the root group.

        Raises `FailedPrecondition` with the kernel's reason for refusing them.
        """
        folder = self.path / group
        try:
            folder.mkdir(exist_ok=True)
            if schemata:
                (folder / "schemata").write_text(schemata)
        except OSError as exc:
            raise FailedPrecondition(self._reason(exc), verbatim=True) from exc

    def remove_others(self, groups: Collection[str]) -> None:
        """Remove all groups but these; one that has processes in it stays, with a warning."""
        for tasks in sorted(self.path.glob("*/tasks")):
            folder = tasks.parent
            if folder.name in groups:
                continue
            try:
                if tasks.read_text().strip():
                    log.warning("resctrl group %s is in use; it stays", folder)
                else:
                    folder.rmdir()
            except OSError as exc:
                log.warning("removing resctrl group %s: %s", folder, self._reason(exc))

    def _reason(self, error: OSError) -> str:
        try:
            status = (self.path / "info/last_cmd_status").read_text().strip()
        except OSError:
            status = ""
        return str(error) if status in ("", "ok") else status


def mounted(path: Path | None = None, *, mounts: Path = Path("/proc/mounts")) -> Resctrl | None:
    """The resctrl file system at `path`, or wherever it is mounted; None if it is not.

    Raises `FailedPrecondition` if it does not look like one.
    """
    options: list[str] = []
    for line in filter(None, os.fsdecode(mounts.read_bytes()).split("\n")):
        _, place, kind, flags, *_ = line.split(" ")
        if kind == "resctrl" and path in (None, Path(place)):
            path, options = Path(place), flags.split(",")
            break
    return None if path is None else read(path, mbps="mba_MBps" in options)


def read(path: Path, *, mbps: bool = False) -> Resctrl:
    """What a folder with resctrl's layout offers. Raises `FailedPrecondition`."""
    try:
        info = path / "info"
        if not info.is_dir():
            raise ValueError("there is no folder info in it")
        schemata = (path / "schemata").read_text()
        caches = {}
        for level in ("L2", "L3"):
            for suffix in ("", "CODE", "DATA"):
                folder = info / (level + suffix)
                if folder.is_dir() and level not in caches:
                    mask = int((folder / "cbm_mask").read_text(), 16)
                    min_bits = int((folder / "min_cbm_bits").read_text())
                    ids = _cache_ids(schemata, level + suffix)
                    caches[level] = Cache(ids, mask, min_bits, split=bool(suffix))
        bandwidth = None
        if (info / "MB").is_dir():
            minimum = int((info / "MB/min_bandwidth").read_text())
            bandwidth = Bandwidth(_cache_ids(schemata, "MB"), minimum, mbps)
    except (OSError, ValueError) as exc:
        raise FailedPrecondition(f"resctrl at {path}: {exc}", verbatim=True) from exc
    return Resctrl(path, caches, bandwidth)


def _cache_ids(schemata: str, resource: str) -> tuple[int, ...]:
    match = re.search(rf"^\s*{resource}:(.*)$", schemata, re.MULTILINE)
    if match is None:
        raise ValueError(f"there is no {resource} in its schemata")
    return tuple(sorted(int(share.partition("=")[0]) for share in match[1].split(";")))
