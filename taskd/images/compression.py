"""Compressed archives, known by how they begin.

Source: containerd's ``pkg/archive/compression``.
"""

from __future__ import annotations

import sys
from io import BufferedReader, RawIOBase
from typing import IO, TYPE_CHECKING, Any, cast

from taskd.errors import TaskdError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Damaged", "decompressed", "is_compressed"]

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BUFFER = 1 << 20


class Damaged(ValueError):
    """What was compressed is no more."""


def is_compressed(beginning: bytes) -> bool:
    """Whether what begins so is gzip or zstd."""
    return beginning.startswith((_GZIP, _ZSTD))


def decompressed(file: BufferedReader[Any]) -> IO[bytes]:
    """What is in `file`, which may be compressed or not; reading raises `Damaged`. Blocks."""
    beginning = file.peek(8)[:8]
    if not is_compressed(beginning):
        return file
    opened = _gunzipped(file) if beginning.startswith(_GZIP) else _unzstd(file)
    return cast(IO[bytes], BufferedReader(_Reader(opened), _BUFFER))


def _gunzipped(file: BufferedReader[Any]) -> IO[bytes]:
    from isal import igzip  # not for those who import nothing

    made: Any = igzip.IGzipFile
    return cast(IO[bytes], made(fileobj=file, mode="rb"))


def _unzstd(file: BufferedReader[Any]) -> IO[bytes]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return cast(IO[bytes], zstd.ZstdFile(file))


class _Reader(RawIOBase):
    """Says in one way what the libraries say in theirs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        try:
            found = self._file.read(len(target))
        except TaskdError:
            raise  # it is not the archive that is to blame
        except Exception as exc:
            # Each library has errors of its own, and EOFError.
            raise Damaged(f"{type(exc).__name__}: {exc}") from exc
        target[: len(found)] = found
        return len(found)
