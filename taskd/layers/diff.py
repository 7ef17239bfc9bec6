"""A layer of what differs between two trees.

Source: containerd's ``pkg/archive/tar.go``, ``ChangeWriter``.
"""

from __future__ import annotations

import os
import stat

from taskd.layers.changes import Change, Kind, attribute, changes, is_linked
from taskd.layers.errors import Refused, failed
from taskd.layers.streams import Compressor
from taskd.layers.tar import BLOCK, CHAR, DIR, FIFO, LINK, REG, SYMLINK
from taskd.layers.writing import END, Header, padding

__all__ = ["write"]

_TYPES = {
    stat.S_IFREG: REG,
    stat.S_IFDIR: DIR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK,
    stat.S_IFIFO: FIFO,
}
_CHUNK = 256 << 10
_SECOND = 10**9


def write(lower: bytes, upper: bytes, out: Compressor, latest: int | None) -> None:
    """Write what makes `upper` of `lower`, two folders, as a tar.

    No time in it is later than `latest`, in nanoseconds since the epoch. Raises `Refused`.
    """
    writer = _Writer(upper, out, latest)
    try:
        for change in changes(lower, upper):
            writer.take(change)
    except OSError as error:
        name = os.fsdecode(error.filename or "")
        raise failed(f"failed to create diff tar stream: {name}", error) from None
    out.write(END)


class _Writer:
    def __init__(self, root: bytes, out: Compressor, latest: int | None) -> None:
        self._root = root
        self._out = out
        self._latest = latest
        self._folders: set[bytes] = set()
        """Those that have been written, or are being so."""
        self._first: dict[int, bytes] = {}
        """Under which name each file with several is in the layer, by inode."""
        self._unchanged: dict[int, list[bytes]] = {}
        """Names of such files before one that has changed."""

    def take(self, change: Change) -> None:
        if change.state is None:
            folder, slash, name = change.path.rpartition(b"/")
            self._put(Header(folder + slash + b".wh." + name))
        elif not stat.S_ISSOCK(change.state.st_mode):
            self._write(change.path, change.state, unchanged=change.kind is Kind.LINKED)

    def _write(self, path: bytes, state: os.stat_result, *, unchanged: bool = False) -> None:
        header = self._header(path, state)
        others: list[bytes] = []
        if is_linked(state):
            first = self._first.get(state.st_ino)
            if first is not None:
                header.type, header.linkname, header.size = LINK, first, 0
            elif unchanged:
                self._unchanged.setdefault(state.st_ino, []).append(header.name)
                return
            else:
                self._first[state.st_ino] = header.name
                others = self._unchanged.pop(state.st_ino, [])
        elif unchanged:
            return
        if capability := attribute(self._root + b"/" + path):
            header.records[b"SCHILY.xattr.security.capability"] = capability
        self._put(header)
        if header.type == REG and header.size:
            self._copy(self._root + b"/" + path, header.size)
        for name in others:
            header.linkname, header.type, header.size = path, LINK, 0
            header.name = name
            self._put(header)

    def _header(self, path: bytes, state: os.stat_result) -> Header:
        mtime = state.st_mtime_ns
        if self._latest is not None:
            mtime = min(mtime, self._latest)
        kind = _TYPES[stat.S_IFMT(state.st_mode)]
        header = Header(
            name=path + b"/" if kind == DIR else path,
            type=kind,
            mode=state.st_mode & 0o7777,
            uid=state.st_uid,
            gid=state.st_gid,
            size=state.st_size if kind == REG else 0,
            mtime=mtime // _SECOND,
        )
        if kind == SYMLINK:
            header.linkname = os.readlink(self._root + b"/" + path)
        if kind in (CHAR, BLOCK):
            header.major, header.minor = os.major(state.st_rdev), os.minor(state.st_rdev)
        return header

    def _put(self, header: Header) -> None:
        name = header.name.rstrip(b"/")
        folder = name.rpartition(b"/")[0]
        if folder and folder not in self._folders:
            self._folders.add(folder)
            self._write(folder, os.stat(self._root + b"/" + folder))
        if header.type == DIR:
            self._folders.add(name)
        self._out.write(header.encoded())

    def _copy(self, path: bytes, size: int) -> None:
        left = size
        with open(path, "rb", 0) as file:
            while left and (piece := file.read(min(left, _CHUNK))):
                left -= len(piece)
                self._out.write(piece)
        if left:
            raise Refused(f"{os.fsdecode(path)} has become shorter")
        self._out.write(padding(size))
