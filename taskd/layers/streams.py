"""Bytes in and out of layers: decompression, compression, digests, each in a thread of its own.

The libraries let go of the interpreter while they work, so that a second processor is used. Which
of them a layer takes is loaded when a `Source` or a `Compressor` is made: that has to be before
its process has another root.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread

from taskd.layers.errors import UNEXPECTED_EOF, Exhausted, Refused, failed
from taskd.layers.kinds import GZIP, PLAIN, ZSTD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class _Decompressor(Protocol):
        """What both libraries have in common, which is what Python's ``bz2`` began with."""

        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        @property
        def unused_data(self) -> bytes: ...
        def decompress(self, data: bytes, max_length: int) -> bytes: ...


__all__ = ["Compressor", "Source"]

_GO = {
    "wrapper found": "gzip: invalid header",
    "Incorrect checksum": "gzip: invalid checksum",
    "Unknown frame descriptor": "invalid input: magic number mismatch",
}
"""Words of the libraries', and Go's."""

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_READ = 128 << 10
_HEADER = 66 << 10
"""Bytes of the longest header of gzip's that Go reads: 64 KiB in an extra field, and two names."""
_BLOCK = 128 << 10
"""Bytes that are handed from thread to thread at once."""
_AHEAD = 4
"""Blocks by which one thread may be ahead of another."""


class Source:
    """The bytes of the tar in a blob, and their digest.

    Reading raises `Refused` for a blob that is damaged, and `Exhausted` for one of more than
    `limit` bytes.
    """

    def __init__(self, blob: int, *, sniff: bool, limit: int) -> None:
        """`blob` is a descriptor; with `sniff` it may be compressed, whatever its name says.

        Raises `Refused` if it cannot be read.
        """
        self.size = 0
        """Bytes that have been decompressed."""
        self._limit = limit
        self._hash = hashlib.sha256()
        self._error: BaseException | None = None
        self._blocks: Queue[bytes] = Queue(_AHEAD)
        self._hashed: Queue[bytes] = Queue(_AHEAD)
        self._block = b""
        self._before = self._at = 0
        first = _read(blob)
        blocks = _blocks(_kind(first) if sniff else PLAIN, blob, first)
        Thread(target=self._produce, args=(blocks,), daemon=True).start()
        self._hashing = Thread(target=self._digest, daemon=True)
        self._hashing.start()

    @property
    def offset(self) -> int:
        """Bytes that have been read."""
        return self._before + self._at

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        end = self._at + count
        if end <= len(self._block):
            found = self._block[self._at : end]
            self._at = end
            return found
        found = b""
        for piece in self.pieces(count):
            found += piece
        return found

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises `Refused` if there are fewer."""
        found = self.read(count)
        if len(found) < count:
            raise Refused(UNEXPECTED_EOF)
        return found

    def pieces(self, count: int) -> Iterator[memoryview]:
        """So many bytes, or fewer at the end, without a copy."""
        while count:
            if self._at == len(self._block) and not self._next():
                return
            piece = memoryview(self._block)[self._at : self._at + count]
            self._at += len(piece)
            count -= len(piece)
            yield piece

    def skip(self, count: int) -> None:
        """Pass over so many bytes. Raises `Refused` if there are fewer."""
        end = self._at + count
        if end <= len(self._block):
            self._at = end
            return
        for piece in self.pieces(count):
            count -= len(piece)
        if count:
            raise Refused(UNEXPECTED_EOF)

    def finish(self) -> str:
        """Read what is left; returns the digest of all that there was."""
        while self._next():
            pass
        self._hashing.join()
        return f"sha256:{self._hash.hexdigest()}"

    def _next(self) -> bool:
        self._before += len(self._block)
        self._block, self._at = self._blocks.get(), 0
        if self._block:
            return True
        self._blocks.put(b"")  # whoever asks once more hears the same
        if self._error is not None:
            raise self._error
        return False

    def _produce(self, blocks: Iterator[bytes]) -> None:
        try:
            for block in blocks:
                self.size += len(block)
                if self.size > self._limit:
                    raise Exhausted(f"the layer has more than {self._limit} bytes")
                self._blocks.put(block)
                self._hashed.put(block)
        except BaseException as error:
            self._error = error
        self._blocks.put(b"")
        self._hashed.put(b"")

    def _digest(self) -> None:
        while block := self._hashed.get():
            self._hash.update(block)


def _kind(first: bytes) -> str:
    if first.startswith(_GZIP_MAGIC):
        return GZIP
    # A frame, or one that is to be skipped (RFC 8878, 3.1.2).
    skippable = first[1:4] == b"\x2a\x4d\x18" and first[0] & 0xF0 == 0x50
    if first.startswith(_ZSTD_MAGIC) or (len(first) >= 8 and skippable):
        return ZSTD
    return PLAIN


def _blocks(kind: str, blob: int, first: bytes) -> Iterator[bytes]:
    """What is in a blob of which the first bytes have been read."""
    if kind == GZIP:
        from isal import igzip_lib

        def gunzip() -> _Decompressor:
            found: _Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            return found

        isal: Any = igzip_lib  # of whose error the stubs know no class
        return _decompressed(GZIP, blob, first, gunzip, isal.IsalError)
    if kind == ZSTD:
        zstd = _zstd()
        return _decompressed(ZSTD, blob, first, zstd.ZstdDecompressor, zstd.ZstdError)
    return _plain(blob, first)


def _plain(blob: int, data: bytes) -> Iterator[bytes]:
    while data:
        yield data
        data = _read(blob)


def _decompressed(
    kind: str,
    blob: int,
    data: bytes,
    make: Callable[[], _Decompressor],
    broken: type[Exception],
) -> Iterator[bytes]:
    """One member, or frame, after another, in blocks of a bounded size."""
    while data or (data := _read(blob)):
        if kind == GZIP:  # isal takes no optional fields that come in pieces
            while len(data) < _HEADER and (more := _read(blob)):
                data += more
        decompressor = make()
        try:
            while not decompressor.eof:
                if decompressor.needs_input and not data and not (data := _read(blob)):
                    raise Refused(UNEXPECTED_EOF)
                block = decompressor.decompress(data, _BLOCK)
                data = b""
                if block:
                    yield block
        except broken as error:
            words = next((go for own, go in _GO.items() if own in str(error)), None)
            raise Refused(words or f"{kind}: corrupt input: {error}") from None
        data = decompressor.unused_data


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _read(blob: int) -> bytes:
    try:
        return os.read(blob, _READ)
    except OSError as error:
        raise failed("read", error) from None


class Compressor:
    """A layer on its way out: `write` takes the tar, and `sink` what becomes of it."""

    def __init__(self, kind: str, sink: int) -> None:
        """`sink` is a descriptor."""
        self._hash = hashlib.sha256()
        self._sink = sink
        self._pending: list[bytes | memoryview] = []
        self._held = 0
        self._library: Any = None
        if kind == GZIP:
            from isal import isal_zlib

            self._library = isal_zlib.compressobj(isal_zlib.ISAL_DEFAULT_COMPRESSION, wbits=31)
        elif kind == ZSTD:
            self._library = _zstd().ZstdCompressor()

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises `Refused`."""
        self._pending.append(data)
        self._held += len(data)
        if self._held >= _BLOCK:
            self._pass_on()

    def finish(self) -> str:
        """Write what is left; returns the digest of all that was given."""
        self._pass_on()
        if self._library is not None:
            self._put(self._library.flush())
        return f"sha256:{self._hash.hexdigest()}"

    def _pass_on(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        self._held = 0
        self._hash.update(block)
        self._put(self._library.compress(block) if self._library is not None else block)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._sink, view) :]
            except OSError as error:
                raise failed("write", error) from None
