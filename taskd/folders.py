"""The folders that a daemon has for itself: made, looked at, and locked."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from taskd.errors import FailedPrecondition

__all__ = ["make", "own", "refuse_exposed"]


@contextmanager
def own(root: Path, state: Path) -> Iterator[None]:
    """Hold both folders, which are made, as this process's own.

    Nobody else reads what is in `root`; into `state` those must reach who run a container's
    processes, and clients. Raises `FailedPrecondition` if another daemon has one of them, if one is
    somebody else's, or if others may write into it; OSError if they cannot be made.
    """
    make(root, 0o700)
    make(state, 0o711)
    with ExitStack() as locks:
        seen: list[os.stat_result] = []
        for folder, what in ((root, "root"), (state, "state")):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            locks.callback(os.close, descriptor)
            found = os.fstat(descriptor)
            # A link, too, may be made by whoever wants us to work elsewhere.
            _refuse_foreign(folder.lstat(), f"the {what} folder {folder}")
            _refuse_foreign(found, f"the {what} folder {folder}")
            if not any(os.path.samestat(found, each) for each in seen):
                locks.enter_context(_lock(descriptor, f"the {what} folder {folder}"))
            seen.append(found)
            if what == "root" and stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(descriptor, 0o700)
        yield


def make(folder: Path, mode: int) -> None:
    """Make a folder, and those above it, if there is none, whatever the umask. Raises OSError."""
    if folder.is_dir():
        return
    make(folder.parent, 0o711)
    with suppress(FileExistsError):  # somebody else was quicker
        folder.mkdir(mode)
        folder.chmod(mode)


def refuse_exposed(folder: Path) -> None:
    """Raise `FailedPrecondition` if others could put theirs in the place of what is in `folder`."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise FailedPrecondition(f"{folder} belongs to user {found.st_uid}", verbatim=True)
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise FailedPrecondition(f"everybody may write into {folder}: chmod o-w", verbatim=True)


def _refuse_foreign(found: os.stat_result, what: str) -> None:
    if stat.S_ISLNK(found.st_mode) and found.st_uid in (0, os.geteuid()):
        return
    if found.st_uid != os.geteuid():
        raise FailedPrecondition(
            f"{what} belongs to user {found.st_uid}, and not to user {os.geteuid()}", verbatim=True
        )
    if found.st_mode & 0o022:
        raise FailedPrecondition(
            f"others may write into {what} (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w",
            verbatim=True,
        )


@contextmanager
def _lock(folder: int, what: str) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open("lock", flags, 0o600, dir_fd=folder)
    except OSError as exc:
        raise FailedPrecondition(f"lock in {what}: {exc.strerror}", verbatim=True) from exc
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FailedPrecondition(f"lock in {what} is not a file", verbatim=True)
        _refuse_foreign(found, f"lock in {what}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise FailedPrecondition(
                f"another taskd (pid {owner}) uses {what}", verbatim=True
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
