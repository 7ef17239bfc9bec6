"""A cgroup for a host process, where the shim may make one.

Source of the files' meanings: the kernel's ``admin-guide/cgroup-v1`` and ``cgroup-v2.rst``; of the
conversion of CPU shares to weights, the OCI specification's config-linux.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskd.errors import Unknown

__all__ = ["Cgroup"]

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")


class Cgroup:
    """The folders of one cgroup: one for each controller (version 1), or one for all."""

    def __init__(self, folders: Mapping[str, Path], unified: bool) -> None:
        self._folders = folders
        self._unified = unified

    @classmethod
    def make(cls, path: str) -> Cgroup | None:
        """Make the cgroup `path`; None if that is not permitted.

        Raises `Unknown` if there are processes in it, or below: they are somebody else's.
        """
        folders = {}
        places = _places(path)
        if others := _inhabitants(places.values()):
            raise Unknown(f"container's cgroup is not empty: {len(others)} process(es) found")
        for controller, folder in places.items():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                if not controller:
                    _hand_down(folder)
                if os.access(folder / "cgroup.procs", os.W_OK):
                    folders[controller] = folder
        return cls(folders, _is_unified()) if folders else None

    @classmethod
    def existing(cls, path: str) -> Cgroup | None:
        """The cgroup `path` that another shim has made; None if there is none."""
        folders = {name: folder for name, folder in _places(path).items() if folder.is_dir()}
        return cls(folders, _is_unified()) if folders else None

    def add(self, pid: int) -> None:
        """Raises OSError."""
        for folder in self._folders.values():
            _put(folder / "cgroup.procs", pid)

    def pids(self) -> list[int]:
        for folder in self._folders.values():
            with suppress(FileNotFoundError):
                return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
        return []

    def freeze(self, yes: bool) -> bool:
        """Whether it could be done."""
        if self._unified:
            _put(self._folders[""] / "cgroup.freeze", int(yes))
        elif "freezer" in self._folders:
            state = "FROZEN" if yes else "THAWED"
            _put(self._folders["freezer"] / "freezer.state", state)
        else:
            return False
        return True

    def let_die(self, pid: int) -> None:
        """See to it that a process which has been sent SIGKILL dies, even if it is frozen."""
        # In version 1 it would die when it is thawed; outside of the frozen cgroup it is.
        if not self._unified and "freezer" in self._folders:
            with suppress(OSError):  # it has gone already
                outside = self._folders["freezer"].parent / "cgroup.procs"
                outside.write_text(str(pid))

    def limit(self, resources: Mapping[str, Any]) -> None:
        """Apply ``linux.resources`` as far as it is about memory, pids and CPU. Raises OSError."""
        for part, apply in _LIMITS.items():
            if given := resources.get(part):
                apply(self, given)

    def _write(self, controller: str, file: str, value: object) -> None:
        folder = self._folders.get("" if self._unified else controller)
        if folder is not None:
            _put(folder / file, value)

    def _limit_memory(self, memory: Mapping[str, Any]) -> None:
        if (limit := memory.get("limit")) is not None:
            if self._unified:
                self._write("memory", "memory.max", "max" if limit < 0 else limit)
            else:
                self._write("memory", "memory.limit_in_bytes", limit)

    def _limit_pids(self, pids: Mapping[str, Any]) -> None:
        limit = pids.get("limit", 0)
        self._write("pids", "pids.max", limit if limit > 0 else "max")

    def _limit_cpu(self, cpu: Mapping[str, Any]) -> None:
        quota, period, shares = (cpu.get(name) for name in ("quota", "period", "shares"))
        if self._unified:
            if quota or period:
                words = "max" if not quota or quota < 0 else quota
                self._write("cpu", "cpu.max", f"{words} {period or 100000}")
            if shares:
                self._write("cpu", "cpu.weight", 1 + (shares - 2) * 9999 // 262142)
            return
        for file, value in (
            ("cpu.cfs_period_us", period),
            ("cpu.cfs_quota_us", quota),
            ("cpu.shares", shares),
        ):
            if value:
                self._write("cpu", file, value)

    def remove(self) -> bool:
        """Remove it; whether that could be done: those who have just ended may be in it still."""
        for controller, folder in self._folders.items():
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
            # Only what was made for it: parents with other children stay.
            with suppress(OSError):
                if folder.parent != _ROOT / controller:
                    folder.parent.rmdir()
        return True


def _inhabitants(folders: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for folder in folders:
        for file in folder.rglob("cgroup.procs"):
            with suppress(OSError):  # it may go meanwhile, or have threads alone
                found.update(map(int, file.read_text().split()))
    return found


def _is_unified() -> bool:
    return (_ROOT / "cgroup.controllers").exists()


def _hand_down(folder: Path) -> None:
    """Version 2: a cgroup has the files of those controllers alone that all above it hand down.

    As runc does it (libcontainer/cgroups/fs2/create.go), what cannot be handed down is left out.
    """
    controllers = (_ROOT / "cgroup.controllers").read_text().split()
    for parent in reversed(folder.relative_to(_ROOT).parents):
        for controller in controllers:
            with suppress(OSError):
                (_ROOT / parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _put(file: Path, value: object) -> None:
    """Write a value into a file of a cgroup. Raises OSError, with the file's name."""
    try:
        file.write_text(str(value))
    except OSError as exc:
        # What is refused is the write, of which the system does not say the name.
        raise OSError(exc.errno, exc.strerror, str(file)) from exc


def _places(path: str) -> dict[str, Path]:
    """Where the cgroup `path` is, by controller; nowhere if it is named in another way."""
    name = path.lstrip("/")
    # systemd's form, slice:prefix:name, would have to be asked of systemd.
    # Nor is the root anybody's own.
    if not Path(name).parts or ".." in Path(name).parts or ":" in name:
        return {}
    controllers = ("",) if _is_unified() else _CONTROLLERS
    return {each: _ROOT / each / name for each in controllers if (_ROOT / each).is_dir()}


_LIMITS: dict[str, Callable[[Cgroup, Mapping[str, Any]], None]] = {
    "memory": Cgroup._limit_memory,
    "pids": Cgroup._limit_pids,
    "cpu": Cgroup._limit_cpu,
}
