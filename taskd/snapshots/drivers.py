"""How a snapshot's files lie below its folder, and how it is mounted: ``overlayfs``, ``native``.

Sources: containerd's ``snapshots/overlay/overlay.go`` and ``snapshots/native/native.go``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from taskd.content.files import explained
from taskd.errors import Unknown
from taskd.runtime import spawn
from taskd.snapshots import idmap
from taskd.snapshots.types import GID_MAPPING_LABEL, UID_MAPPING_LABEL, Kind
from taskd.types import Mount

__all__ = ["Driver", "Native", "Overlay"]


class Driver(ABC):
    name: ClassVar[str]
    mounting: ClassVar[str]
    """What Mounts is in the words of its errors."""

    def __init__(
        self, folder: Path, options: Sequence[str] = (), capabilities: Sequence[str] = ()
    ) -> None:
        """`folder` has those of all snapshots, by number; `options` are its mounts' own."""
        self.capabilities = tuple(capabilities)
        """What clients may ask of it, in containerd's words."""
        self._folder = str(folder)
        self._options = tuple(options)

    copies: ClassVar[bool] = False
    """An active snapshot begins as a copy of its parent."""

    async def copy(self, folder: Path, parent: int) -> None:
        """Make `folder` a copy of the snapshot `parent`. Raises `Unknown`."""
        raise NotImplementedError

    @abstractmethod
    def make(
        self, folder: Path, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]
    ) -> None:
        """Make `folder`, if the snapshot has one and it is not a copy; blocks.

        `parents` are the numbers of those it is on, the nearest first.

        Raises `Unknown`, also for labels that cannot be followed.
        """

    @abstractmethod
    def mounts(self, kind: Kind, number: int, parents: Sequence[int]) -> Sequence[Mount]:
        """What to mount, in order, to have the snapshot's files."""

    def files(self, number: int) -> Path:
        """Where its own files are, which its usage is that of."""
        return Path(self._place(number))

    @abstractmethod
    def _place(self, number: int) -> str:
        """The same; as text, since a container of many layers names many."""

    @abstractmethod
    def committing(self, inner: str) -> str:
        """What Commit is in the words of its errors."""


class Overlay(Driver):
    """Each snapshot is the upper directory of an overlay on those of its parents."""

    name = "overlayfs"
    mounting = "failed to get active mount"

    def make(
        self, folder: Path, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]
    ) -> None:
        owner = self._owner(parents, labels)
        _mkdir(folder, 0o700)
        files = folder / "fs"
        _mkdir(files, 0o755)
        if kind is Kind.ACTIVE:
            _mkdir(folder / "work", 0o711)
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            with explained(f"failed to chown: lchown {files}"):
                os.lchown(files, *owner)

    def _owner(self, parents: Sequence[int], labels: Mapping[str, str]) -> tuple[int, int] | None:
        """Who is to own the top folder: who owns the parent's, or root as it is mapped."""
        uids, gids = labels.get(UID_MAPPING_LABEL), labels.get(GID_MAPPING_LABEL)
        if uids is not None or gids is not None:
            return idmap.root(uids or "", gids or "")
        if not parents:
            return None
        above = self.files(parents[0])
        with explained(f"failed to stat parent: stat {above}"):
            found = above.stat()
        return found.st_uid, found.st_gid

    def mounts(self, kind: Kind, number: int, parents: Sequence[int]) -> Sequence[Mount]:
        if not parents:
            mode = "ro" if kind is Kind.VIEW else "rw"
            return [_bind(self._place(number), mode, "rbind")]
        if kind is Kind.VIEW and len(parents) == 1:
            return [_bind(self._place(parents[0]), "ro", "rbind")]
        layers = [f"lowerdir={':'.join(map(self._place, parents))}"]
        if kind is Kind.ACTIVE:
            work = f"{self._folder}/{number}/work"
            layers = [f"workdir={work}", f"upperdir={self._place(number)}", *layers]
        return [Mount("overlay", "overlay", options=(*layers, *self._options))]

    def _place(self, number: int) -> str:
        return f"{self._folder}/{number}/fs"

    def committing(self, inner: str) -> str:
        return f"failed to commit snapshot {inner}"


class Native(Driver):
    """Each snapshot is a whole copy of its parent: slow and large, and asks for no privilege."""

    name = "native"
    copies = True
    mounting = "failed to get snapshot mount"

    async def copy(self, folder: Path, parent: int) -> None:
        # What has many names keeps them, holes stay holes, and a file system that can share
        # blocks does. Extended attributes that may not be copied are left out.
        command = ["cp", "-a", "--reflink=auto", "--", f"{self.files(parent)}/.", str(folder)]
        _mkdir(folder, 0o755)
        done = await spawn.run(command, cwd=Path("/"), env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise Unknown(f"copying of parent failed: {words}")

    def make(
        self, folder: Path, kind: Kind, parents: Sequence[int], labels: Mapping[str, str]
    ) -> None:
        if not parents:
            _mkdir(folder, 0o755)

    def mounts(self, kind: Kind, number: int, parents: Sequence[int]) -> Sequence[Mount]:
        shown = parents[0] if kind is Kind.VIEW and parents else number
        return [_bind(self._place(shown), "rbind", "ro" if kind is Kind.VIEW else "rw")]

    def _place(self, number: int) -> str:
        return f"{self._folder}/{number}"

    def committing(self, inner: str) -> str:
        return "failed to commit snapshot"


def _bind(source: str, *options: str) -> Mount:
    return Mount("bind", source, options=options)


def _mkdir(folder: Path, mode: int) -> None:
    """With that mode whatever the umask. Raises `Unknown`."""
    with explained(f"failed to create prepare snapshot dir: mkdir {folder}"):
        folder.mkdir(mode)
        folder.chmod(mode)
