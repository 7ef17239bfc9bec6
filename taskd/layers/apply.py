"""A layer onto a root filesystem: containerd's ``pkg/archive/tar.go``, ``applyNaive``.

The root filesystem is the process's own root (see `confinement`): names are looked up as they
stand, and lead nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress

from taskd.layers import rootfs
from taskd.layers.errors import UNEXPECTED_EOF, Exhausted, Refused, failed
from taskd.layers.streams import Source
from taskd.layers.tar import BLOCK, CHAR, DIR, FIFO, LINK, REG, SYMLINK, Entry, entries

__all__ = ["Layer"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LATEST = (1 << 63) - 1
"""Nanoseconds; what is later, or before the epoch, is taken for the epoch."""
_DEVICE = 1 << 32

_OPERATIONS = {REG: "open", DIR: "mkdir", SYMLINK: "symlink", LINK: "link"}
"""What Go calls the making of each kind; of the others it says nothing."""


class Layer:
    """One layer, while it is unpacked."""

    def __init__(
        self,
        *,
        overlay: bool,
        parents: Sequence[int] | None,
        devices: bool,
        owners: bool,
        max_size: int,
        max_entries: int,
    ) -> None:
        """`overlay`: the root is an upper directory, in which what was deleted is written down.

        `parents` are descriptors of the lower ones, whose folders are gone by; None if they are
        not there yet. Without `devices` these are left out, without `owners` it does not matter if
        one cannot be set.
        """
        self._overlay = overlay
        self._parents = parents
        self._devices = devices
        self._owners = owners
        self._max_size = self._size_left = max_size
        self._max_entries = self._entries_left = max_entries
        self._folders: list[tuple[bytes, int, int]] = []
        """Their times are set in the end: what is made in them changes these."""
        self._unpacked: dict[bytes, set[bytes]] = {}
        """Names by folder: an opaque folder keeps them, wherever its marker stands."""
        self._make: dict[bytes, Callable[[bytes, Entry, Source], None]] = {
            REG: self._file,
            DIR: self._folder,
            SYMLINK: self._symlink,
            LINK: self._link,
            CHAR: self._node,
            BLOCK: self._node,
            FIFO: self._node,
        }

    def unpack(self, source: Source) -> None:
        """Raises `Refused`, and `ParentsWanted`, after which a part has been unpacked."""
        for entry in entries(source):
            self._entries_left -= 1
            if self._entries_left < 0:
                raise Exhausted(f"the layer has more than {self._max_entries} entries")
            if entry.type in (CHAR, BLOCK) and not self._devices:
                continue
            self._take(entry, source)
        for path, atime, mtime in self._folders:
            _set_times(path, atime, mtime, follow=True)

    def _take(self, entry: Entry, source: Source) -> None:
        path = rootfs.clean(entry.name)
        if path == b"/":
            return
        parent, _, name = path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            self._whiteout(entry, parent, name)
            return
        make = self._make.get(entry.type)
        if make is None:
            raise Refused(f"unhandled tar header type {entry.type[0]}")
        try:
            try:
                make(path, entry, source)
            except FileNotFoundError:
                rootfs.make_folders(parent, self._parents)
                make(path, entry, source)
            except FileExistsError:
                _remove(path)
                make(path, entry, source)
        except NotADirectoryError:
            raise Refused(f"mkparent {os.fsdecode(parent)}: not a directory") from None
        except OSError as error:
            operation = _OPERATIONS.get(entry.type)
            names = [os.fsdecode(path)] if operation else []
            if entry.type == SYMLINK:
                names.insert(0, os.fsdecode(entry.linkname))
            elif entry.type == LINK:
                names.insert(0, os.fsdecode(rootfs.clean(entry.linkname)))
            raise failed(" ".join([operation or "", *names]), error) from None
        if not self._overlay:
            self._unpacked.setdefault(parent, set()).add(name)

    # Each of these makes what was not there, and raises OSError if it cannot.

    def _file(self, path: bytes, entry: Entry, source: Source) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._size_left -= entry.size
        if self._size_left < 0:
            raise Exhausted(f"the files of the layer have more than {self._max_size} bytes")
        try:
            file = os.open(path, flags, entry.mode & 0o777)
        except OSError:
            self._size_left += entry.size
            raise
        try:
            _fill(file, path, entry, source)
            self._dress(file, path, entry)
        finally:
            os.close(file)

    def _folder(self, path: bytes, entry: Entry, source: Source) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise
        self._dress(path, path, entry)
        self._folders.append((path, *_times(entry)))

    def _symlink(self, path: bytes, entry: Entry, source: Source) -> None:
        os.symlink(entry.linkname, path)
        self._dress(None, path, entry)

    def _link(self, path: bytes, entry: Entry, source: Source) -> None:
        os.link(b"/" + entry.linkname, path, follow_symlinks=False)
        is_symlink = stat.S_ISLNK(os.lstat(path).st_mode)
        self._dress(None if is_symlink else path, path, entry)

    def _node(self, path: bytes, entry: Entry, source: Source) -> None:
        kind = {CHAR: stat.S_IFCHR, BLOCK: stat.S_IFBLK, FIFO: stat.S_IFIFO}[entry.type]
        if not (0 <= entry.major < _DEVICE and 0 <= entry.minor < _DEVICE):
            raise Refused(
                f"device number {entry.major}:{entry.minor} for "
                f'"{os.fsdecode(entry.name)}" out of range: invalid archive'
            )
        os.mknod(path, kind | entry.mode & 0o7777, os.makedev(entry.major, entry.minor))
        self._dress(path, path, entry)

    def _dress(self, file: int | bytes | None, path: bytes, entry: Entry) -> None:
        """Owner, attributes, mode and times, in this order: each undoes parts of the next.

        `file` is None for a symbolic link, which has no mode.
        """
        try:
            if isinstance(file, int):
                os.fchown(file, entry.uid, entry.gid)
            else:
                os.lchown(path, entry.uid, entry.gid)
        except (OSError, OverflowError) as error:
            if self._owners:
                number = error if isinstance(error, OSError) else OSError(errno.EINVAL, "")
                name = os.fsdecode(path)
                raise failed(
                    f'failed to Lchown "{name}" for UID {entry.uid}, GID {entry.gid}: '
                    f"lchown {name}",
                    number,
                ) from None
        for key, value in entry.xattrs.items():
            _set_attribute(path, key, value)
        try:
            if file is not None:
                os.chmod(file, entry.mode & 0o7777)
        except OSError as error:
            raise failed(f"chmod {os.fsdecode(path)}", error) from None
        if isinstance(file, int):
            os.utime(file, ns=_times(entry))
        else:
            _set_times(path, *_times(entry), follow=False)

    def _whiteout(self, entry: Entry, parent: bytes, name: bytes) -> None:
        rootfs.make_folders(parent, self._parents)
        hidden = name.removeprefix(_WHITEOUT)
        if name != _OPAQUE and hidden in (b"", b".", b".."):
            words = f"invalid whiteout name: {os.fsdecode(name)}: invalid archive"
            raise Refused(words)
        folder, path = parent or b"/", parent + b"/" + hidden
        try:
            if name == _OPAQUE:
                if self._overlay:
                    os.setxattr(folder, b"trusted.overlay.opaque", b"y")
                else:
                    self._clear(folder)
            elif self._overlay:
                os.mknod(path, stat.S_IFCHR, 0)
                os.chown(path, entry.uid, entry.gid)
            else:
                _remove(path)
        except (OSError, OverflowError) as error:
            number = error if isinstance(error, OSError) else OSError(errno.EINVAL, "")
            shown = os.fsdecode(entry.name.rstrip(b"/"))
            raise failed(f'failed to convert whiteout file "{shown}"', number) from None

    def _clear(self, folder: bytes) -> None:
        """Remove what is in a folder, and no part of this layer."""
        folder = os.path.realpath(folder)
        kept = set()
        for parent, names in self._unpacked.items():
            parent = os.path.realpath(parent or b"/").rstrip(b"/")
            if (parent + b"/").startswith(folder.rstrip(b"/") + b"/"):
                kept |= {parent + b"/" + name for name in names}
        pending = [folder]
        while pending:
            for each in os.scandir(pending.pop()):
                if each.path not in kept:
                    _remove(each.path)
                elif each.is_dir(follow_symlinks=False):
                    pending.append(each.path)


def _fill(file: int, path: bytes, entry: Entry, source: Source) -> None:
    pieces = [(0, entry.size)] if entry.map is None else entry.map
    try:
        for offset, length in pieces:
            if entry.map is not None:
                os.lseek(file, offset, os.SEEK_SET)
            for piece in source.pieces(length):
                length -= len(piece)
                while piece:
                    piece = piece[os.write(file, piece) :]
            if length:
                raise Refused(UNEXPECTED_EOF)
        if entry.map is not None:
            os.truncate(file, entry.size)
    except OSError as error:
        raise failed(f"write {os.fsdecode(path)}", error) from None


def _remove(path: bytes) -> None:
    """Remove whatever it is, if it is there. Raises OSError."""
    pending = [path]
    while pending:
        path = pending[-1]
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            # Once what is in it has gone, it goes too.
            if inside := [each.path for each in os.scandir(path)]:
                pending += inside
                continue
            os.rmdir(path)
        pending.pop()


def _times(entry: Entry) -> tuple[int, int]:
    """Of access and of change, in nanoseconds."""
    mtime = entry.mtime
    atime = mtime if entry.atime is None else max(entry.atime, mtime)
    return (atime if 0 <= atime <= _LATEST else 0, mtime if 0 <= mtime <= _LATEST else 0)


def _set_times(path: bytes, atime: int, mtime: int, *, follow: bool) -> None:
    try:
        os.utime(path, ns=(atime, mtime), follow_symlinks=follow)
    except OSError as error:
        raise failed(f"failed call to UtimesNanoAt for {os.fsdecode(path)}", error) from None


def _set_attribute(path: bytes, key: bytes, value: bytes) -> None:
    if key.startswith(b"trusted."):
        return  # these are the administrator's
    try:
        os.setxattr(path, key, value, follow_symlinks=False)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        if number == errno.EOPNOTSUPP:
            return
        if number == errno.EPERM and key.startswith(b"user."):
            with suppress(OSError):
                mode = os.lstat(path).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    return  # nothing else can have them
        raise failed(
            f'failed to setxattr "{os.fsdecode(path)}" for key "{os.fsdecode(key)}"',
            OSError(number, ""),
        ) from None
