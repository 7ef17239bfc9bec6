"""A snapshotter's folders, in containerd's layout. All of it blocks.

snapshots/<number>      a snapshot's files
snapshots/new-<random>  one that is being made
snapshots/rm-<random>   what was removed and is not gone yet
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from taskd.content.files import explained
from taskd.snapshots.types import Usage

__all__ = ["Folders", "usage"]

_log = logging.getLogger(__name__)


class Folders:
    def __init__(self, root: Path) -> None:
        """Those below `root`, which is made if need be. Raises OSError."""
        self.root = root
        self.path = root / "snapshots"
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._making: set[str] = set()

    def of(self, number: int) -> Path:
        return self.path / str(number)

    @contextmanager
    def making(self) -> Iterator[Path]:
        """Where to make a snapshot's folder, which nobody takes for rubbish meanwhile.

        What has not been placed in the end is rubbish.
        """
        name = f"new-{secrets.token_hex(8)}"
        self._making.add(name)
        try:
            yield self.path / name
        finally:
            self._making.discard(name)

    @staticmethod
    def discard(made: Path) -> None:
        """Remove what has been made of a folder, if anything has. Raises `Unknown`."""
        with explained(f"remove {made}"), suppress(FileNotFoundError):
            _remove(made)

    def place(self, made: Path, number: int) -> None:
        """Let a folder that was made be that of the snapshot. Raises `Unknown`."""
        folder = self.of(number)
        with explained(f"failed to rename: rename {made} {folder}"):
            if folder.exists():
                # A transaction made it that came to nothing; its number is given out again.
                folder.rename(self._rubbish())
            made.rename(folder)

    def set_aside(self, known: Set[int]) -> None:
        """Put away what belongs to no snapshot; as a part of a transaction, so none is new."""
        names = {str(number) for number in known} | self._making
        for entry in os.scandir(self.path):
            if entry.name not in names and not entry.name.startswith("rm-"):
                Path(entry).rename(self._rubbish())

    def clear(self) -> None:
        """Remove what was put away. What cannot be removed is tried again the next time."""
        for entry in os.scandir(self.path):
            if entry.name.startswith("rm-"):
                try:
                    _remove(Path(entry))
                except OSError as error:
                    _log.warning("failed to remove %s: %s", entry.path, error)

    def _rubbish(self) -> Path:
        return self.path / f"rm-{secrets.token_hex(8)}"


def _remove(folder: Path) -> None:
    """Remove all of it, also what its owner, who is not root, may not write to. Raises OSError."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        left = [os.fspath(folder)]
        while left:
            top = Path(left.pop())
            top.chmod(0o700)
            with os.scandir(top) as entries:
                left += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        shutil.rmtree(folder)


def usage(folder: Path) -> Usage:
    """What `folder`, itself included, takes on the disk. Raises `Unknown`.

    Blocks are counted, of what has several names once; what goes meanwhile is not.
    Source: continuity's ``fs/du_unix.go``.
    """
    with explained(f"lstat {folder}"):
        top = os.lstat(folder)
        size, seen = top.st_blocks * 512, {(top.st_dev, top.st_ino)}
        left = [os.fspath(folder)]
        while left:
            with suppress(FileNotFoundError), os.scandir(left.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if (inode := (found.st_dev, found.st_ino)) not in seen:
                            seen.add(inode)
                            size += found.st_blocks * 512
                        if stat.S_ISDIR(found.st_mode):
                            left.append(entry.path)
    return Usage(size, len(seen))
