"""Unix sockets that a daemon listens on."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskd import folders
from taskd.errors import FailedPrecondition

__all__ = ["listening", "refuse_stranger", "remove_stale"]

MAX_PATH = 107
"""Bytes of a unix socket's path: ``sun_path`` less its final NUL, unix(7)."""


@contextmanager
def listening(
    path: Path,
    user: int = -1,
    group: int = -1,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> Iterator[socket.socket]:
    """A socket bound to `path` and listening; the path is removed in the end.

    It is `user`'s and `group`'s, if they are given: these may connect, and nobody else but root.
    A stale socket is replaced. Raises `FailedPrecondition` if somebody listens there, if there is
    something that is no socket, or if others could replace it, and OSError for an owner that this
    process may not give it to.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise FailedPrecondition(
            f"socket path is longer than {MAX_PATH} bytes: {path}", verbatim=True
        )
    folders.make(path.parent, 0o711)
    folders.refuse_exposed(path.parent)
    remove_stale(path, kind)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.setblocking(False)
        mask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        ours = path.stat().st_ino
        try:
            if (user, group) != (-1, -1):
                os.chown(path, user, group)
            listener.listen(1024)
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if path.stat().st_ino == ours:
                    path.unlink()


def refuse_stranger(connected: socket.socket) -> None:
    """Raise PermissionError unless who listens at the other end is root, or this very user."""
    _, user, _ = struct.unpack(
        "3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    if user not in (0, os.geteuid()):
        raise PermissionError(f"it is user {user} who listens there")


def remove_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """Remove the socket that a process left at `path`, if there is one.

    Raises `FailedPrecondition` if somebody listens there, or if it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} exists and is not a socket", verbatim=True)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # somebody holds it and is too busy to answer
    raise FailedPrecondition(f"another daemon listens on {path}", verbatim=True)
