"""The process that unpacks one archive, which is its standard input.

What it is to do it is told in JSON by its one argument; if that does not work out, it says so in
JSON on standard output, and ends with status 1. It is run as a file, and imports nothing of
taskd's: it starts in a few hundredths of a second, and there is little in it to be attacked.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
from typing import Any

__all__ = ["EXHAUSTED", "FAILED", "REFUSED"]

REFUSED = "refused"
"""The archive is to blame."""
EXHAUSTED = "exhausted"
"""It goes beyond a limit."""
FAILED = "failed"
"""The disk is to blame."""

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 20

# What a name in an archive can lead to, whatever the disk is like.
_BY_NAME = {errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}


class Refused(Exception):
    pass


class Exhausted(Exception):
    pass


def main() -> None:
    """Do what the argument says."""
    order = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != order["parent"]:
        return  # it died before that
    os.umask(0o077)
    os.mkdir(order["folder"])  # noqa: PTH102
    os.chdir(order["folder"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, max(order["bytes"], 1 << 16))  # standard output is a file, too
    _limit(resource.RLIMIT_AS, order["memory"])
    try:
        Unpacking(order).run(sys.stdin.buffer)
    except Refused as exc:
        outcome = REFUSED, str(exc)
    except Exhausted as exc:
        outcome = EXHAUSTED, str(exc)
    except MemoryError:
        outcome = EXHAUSTED, f"unpacking takes more than {order['memory']} bytes of memory"
    except OSError as exc:
        outcome = REFUSED if exc.errno in _BY_NAME else FAILED, str(exc)
    except Exception as exc:
        # Whatever else tarfile raises, for what is in the archive.
        outcome = REFUSED, f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    else:
        return
    json.dump(outcome, sys.stdout)
    sys.stdout.flush()
    os._exit(1)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


class Unpacking:
    """One archive, into the working folder."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._members = self._members_left = order["members"]
        self._bytes = self._bytes_left = order["bytes"]
        self._depth = order["depth"]
        self._make = {
            tarfile.REGTYPE: self._file,
            tarfile.AREGTYPE: self._file,
            tarfile.DIRTYPE: self._folder,
        }

    def run(self, source: Any) -> None:
        size = os.fstat(source.fileno()).st_size
        try:
            with tarfile.open(fileobj=source, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined] # it keeps them all
                    if not 0 <= member.size <= size - member.offset_data:
                        raise Refused(f"{member.name}: larger than the archive")
                    self._take(archive, member)
                self._see_the_end(source, archive.offset)
        except tarfile.TarError as exc:
            raise Refused(str(exc)) from exc

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        make = self._make.get(member.type)
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if make is None or member.sparse is not None:
            raise Refused(f"{member.name}: not a plain file")
        if member.name.startswith("/") or ".." in parts:
            raise Refused(f"{member.name}: not a plain file below the folder")
        if len(parts) > self._depth:
            raise Exhausted(f"a path of more than {self._depth} parts")
        if parts:  # else the folder itself
            make(archive, member, parts)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]) -> None:
        self._folders(parts[:-1])
        self._count()
        self._bytes_left -= member.size
        if self._bytes_left < 0:
            raise Exhausted(f"more than {self._bytes} bytes")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        content = archive.extractfile(member)
        assert content is not None
        with open(os.open("/".join(parts), flags, 0o600), "wb") as file:  # noqa: PTH123
            shutil.copyfileobj(content, file, _CHUNK)

    def _folder(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]) -> None:
        self._folders(parts)

    def _folders(self, parts: list[str]) -> None:
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            try:
                os.mkdir(path)  # noqa: PTH102
            except FileExistsError:
                if not os.path.isdir(path):  # noqa: PTH112
                    raise Refused(f"{path}: a folder and a file") from None
            else:
                self._count()

    def _count(self) -> None:
        self._members_left -= 1
        if self._members_left < 0:
            raise Exhausted(f"more than {self._members} files and folders")

    @staticmethod
    def _see_the_end(source: Any, offset: int) -> None:
        """tarfile takes a header that is none for the end, unless it is the first."""
        source.seek(offset)
        if source.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise Refused("invalid header")


if __name__ == "__main__":
    main()
