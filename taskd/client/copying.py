"""Files into root filesystems, and out of them: links in there lead nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from taskd import rooted

__all__ = ["exists", "get", "put"]


def put(source: Path, roots: Sequence[Path], target: str) -> None:
    """Copy `source` to `target`, or into it if that is a folder. Raises OSError.

    `roots` are the folders that are laid upon each other, the topmost first: that is written to.
    """
    place = PurePosixPath("/", target)
    if _is_folder(roots[0], place):
        place /= source.name
    with rooted.opened(roots[0], str(place.parent)) as folder:
        _put(source, folder, place.name)


def _put(source: Path, folder: Path, name: str) -> None:
    """Never through a link that is there: it leads to where it says on the host."""
    place = folder / name
    if source.is_dir():
        if place.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "is a link", name)
        place.mkdir(exist_ok=True)
        for each in source.iterdir():
            _put(each, place, each.name)
        return
    beside = folder / f".{uuid.uuid4().hex}"
    try:
        shutil.copy2(source, beside, follow_symlinks=False)
        os.replace(beside, place)  # noqa: PTH105
    finally:
        beside.unlink(missing_ok=True)


def get(roots: Sequence[Path], source: str, target: Path) -> None:
    """Copy `source` to `target`, or into it if that is a folder. Raises OSError."""
    if target.is_dir():
        target /= PurePosixPath(source).name
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
    for root in roots:
        try:
            with rooted.opened(root, source) as found:
                if found.is_dir():
                    shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
                else:
                    shutil.copy2(found, target)
        except FileNotFoundError:
            continue
        return
    raise missing


def _is_folder(root: Path, place: PurePosixPath) -> bool:
    try:
        with rooted.opened(root, str(place)) as found:
            return found.is_dir()
    except OSError:
        return False


def exists(root: Path, path: str) -> bool:
    """Whether there is something at `path`."""
    try:
        with rooted.opened(root, path):
            return True
    except OSError:
        return False
