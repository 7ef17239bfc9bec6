"""The content store as a namespace sees it. Source: containerd's ``metadata/content.go``."""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

from taskd import filters as filters_
from taskd.content import records
from taskd.content.files import Files
from taskd.content.ingest import Status, read_status
from taskd.content.locks import Locks
from taskd.content.records import Info
from taskd.content.writer import Shared, Writer
from taskd.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange, TaskdError
from taskd.metadata import labels as labels_
from taskd.metadata import leases
from taskd.metadata.database import Database
from taskd.metadata.namespaces import ensure
from taskd.printable import quoted

__all__ = ["ContentStore", "Info"]

EXPIRY = 24 * 60 * 60 * 10**9
"""Nanoseconds after which a write that no lease holds may be thrown away."""

_BATCH = 64  # records that `list` decodes before it lets others run
_CHUNK = 1 << 20
_SMALL = 128 << 10
"""Bytes that are copied sooner than a thread could be asked for them."""


class ContentStore:
    """Blobs, each of which is stored once, and seen by the namespaces that wrote it.

    A write that names a digest which another namespace has is given that blob, without sending
    the bytes (containerd's policy ``shared``, its default). The file of a blob goes when the last
    namespace deletes it. `lease` is always the lease that the caller works under, if any.
    """

    def __init__(self, database: Database, root: Path) -> None:
        """The store below the folder `root`, which is created. Blocks; raises OSError."""
        self._database = database
        self._files = Files(root)
        self._locks = Locks()

    def info(self, namespace: str, digest: str) -> Info:
        """Raises `NotFound`."""
        rows = self._database.read(records.SELECT_INFO, (namespace, digest))
        if not rows:
            raise NotFound(f"content digest {digest}")
        return records.info(rows[0])

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Info]:
        """The blobs that pass one of `filters`, by digest.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await filters_.prepare(filters)
        found = []
        rows = self._database.read(f"{records.SELECT_INFOS} ORDER BY digest", (namespace,))
        for number, row in enumerate(rows, start=1):
            info = records.info(row)
            if matches.match(functools.partial(_lookup, info)):
                found.append(info)
            if number % _BATCH == 0:
                await anyio.lowlevel.checkpoint()
        return found

    async def update(self, namespace: str, info: Info, fieldpaths: Sequence[str] = ()) -> Info:
        """Replace a blob's labels, or those that `fieldpaths` name; returns the result.

        Paths are ``labels`` and ``labels.<key>``; nothing else of a blob may change. Raises
        `InvalidArgument`, `NotFound`.
        """

        def update(connection: sqlite3.Connection) -> Info:
            row = connection.execute(records.SELECT_INFO, (namespace, info.digest)).fetchone()
            if row is None:
                raise NotFound(f"content digest {info.digest}")
            current = records.info(row)
            owner = f"content info {quoted(info.digest)}"
            labels = labels_.updated(current.labels, info.labels, fieldpaths, owner)
            try:
                labels_.validate(labels)
            except TaskdError as error:
                raise error.within("info.Labels") from None
            try:
                stored = labels_.dump(labels)
            except TaskdError as error:
                raise error.within(f"writing labels for info {info.digest}") from None
            now = time.time_ns()
            connection.execute(
                "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (stored, now, namespace, info.digest),
            )
            return replace(current, labels=labels_.load(stored), updated_at=now)

        return await self._database.write(update)

    async def delete(self, namespace: str, digest: str, lease: str | None = None) -> None:
        """Take a blob from the namespace. Raises `NotFound`."""

        def delete(connection: sqlite3.Connection) -> None:
            deleted = connection.execute(
                "DELETE FROM blobs WHERE namespace = ? AND digest = ?", (namespace, digest)
            )
            if not deleted.rowcount:
                raise NotFound(f"content digest {digest}")
            leases.release(connection, namespace, lease, "content", digest)

        await self._database.write(delete, deletes=True)
        await self._remove_unused(digest)

    async def read(
        self, namespace: str, digest: str, offset: int = 0, size: int = 0
    ) -> AsyncGenerator[bytes]:
        """The bytes of a blob from `offset` on, at most `size` of them if that is above 0.

        They come in pieces of 1 MiB. Raises `NotFound`, and `OutOfRange` for an offset beyond
        the end; an offset below 0 is taken for 0.
        """
        whole = self.info(namespace, digest).size
        path = self._files.blob(digest)
        offset = max(offset, 0)
        end = min(offset + size, whole) if size > 0 else whole
        try:
            piece, file = _at_hand(path, offset, end), None
            if not piece:
                piece, file = await run_sync(_open, path, offset, end)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} expected at {path}: blob not found") from None
        if offset > whole:
            raise OutOfRange(f"read past object length {whole} bytes", verbatim=True)
        try:
            while piece:
                yield piece
                offset += len(piece)
                piece = await run_sync(_piece, file, offset, end) if file is not None else b""
        finally:
            if file is not None:
                with anyio.CancelScope(shield=True):
                    await run_sync(os.close, file)

    @contextmanager
    def opened(self, namespace: str, digest: str) -> Iterator[int]:
        """A descriptor of a blob's file, at its beginning. Raises `NotFound`."""
        self.info(namespace, digest)
        path = self._files.blob(digest)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} expected at {path}: blob not found") from None
        try:
            yield file
        finally:
            os.close(file)

    async def status(self, namespace: str, ref: str) -> Status:
        """How far a write has come. Raises `NotFound`, `Unknown`."""
        found = self._database.read(
            "SELECT 1 FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref)
        )
        if not found:
            raise NotFound(f"reference {ref}")
        return await self._status(namespace, ref)

    async def statuses(self, namespace: str, filters: Iterable[str] = ()) -> Sequence[Status]:
        """How far all writes have come whose ``ref`` passes one of `filters`, by ref.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await filters_.prepare(filters)
        found = []
        for (ref,) in self._database.read(
            "SELECT ref FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,)
        ):
            if matches.match(functools.partial(_lookup_status, ref)):
                with suppress(NotFound):  # it expects what is there, or has just ended
                    found.append(await self._status(namespace, ref))
        return found

    async def abort(self, namespace: str, ref: str, lease: str | None = None) -> None:
        """Throw an unfinished write away, even one under way. Raises `NotFound`."""

        def abort(connection: sqlite3.Connection) -> str:
            expected = records.end(connection, namespace, ref)
            if expected is None:
                raise NotFound(f"reference {ref}")
            leases.release(connection, namespace, lease, "ingests", ref)
            # Within the transaction: whoever begins this write again comes after it.
            self._files.discard(self._files.ingest(records.key(namespace, ref)))
            return expected

        expected = await self._database.write(abort)
        if expected:
            await self._remove_unused(expected)

    @asynccontextmanager
    async def writer(
        self, namespace: str, ref: str, total: int, expected: str, lease: str | None = None
    ) -> AsyncIterator[Writer]:
        """Begin or resume the write `ref`, for as long as the context is open.

        `total` is its size in bytes (0: not known), `expected` its digest (empty: not known).
        Raises `AlreadyExists` if the namespace has what is expected, `Unavailable` if another
        has the write open, `NotFound` for a lease that there is not.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")

        def begin(connection: sqlite3.Connection) -> tuple[bool, Shared | None]:
            if expected and records.has(connection, namespace, expected):
                leases.hold(connection, namespace, lease, "content", expected)
                return True, None
            source, now = None, time.time_ns()
            size = self._files.size(expected)
            if size is not None and total in (0, size):
                source = Shared(expected, size, now)
            ensure(connection, namespace)
            records.begin(
                connection,
                namespace,
                ref,
                expected if source else "",
                None if lease else now + EXPIRY,
            )
            leases.hold(connection, namespace, lease, "ingests", ref)
            return False, source

        exists, source = await self._database.write(begin)
        if exists:
            raise AlreadyExists(f"content {expected}")
        writer = Writer(self._database, self._files, self._locks, namespace, ref, lease, source)
        try:
            if source is None:
                await writer.open(total)
            yield writer
        finally:
            await writer.close()

    @property
    def active(self) -> Set[str]:
        """Keys of the writes that are under way, with files of their own."""
        return self._locks.held()

    async def sweep(self) -> None:
        """Remove the files of what nobody knows (any more). Raises OSError, `Unknown`.

        They are those of what has been collected, and of what a daemon leaves that died between
        two steps.
        """

        def sweep(connection: sqlite3.Connection) -> Set[str]:
            known = {
                self._files.ingest(records.key(namespace, ref))
                for namespace, ref in connection.execute("SELECT namespace, ref FROM ingests")
            }
            for folder in self._files.ingests():
                if folder not in known:
                    self._files.discard(folder)
            return records.used(connection)

        used = await self._database.maintain(sweep)
        # In this order: what comes meanwhile is looked at once more, and stays.
        for digest in await run_sync(lambda: set(self._files.digests()) - used):
            await self._remove_unused(digest)

    async def _remove_unused(self, digest: str) -> None:
        await self._database.maintain(functools.partial(records.remove_unused, self._files, digest))

    async def _status(self, namespace: str, ref: str) -> Status:
        folder = self._files.ingest(records.key(namespace, ref))
        return replace(await run_sync(read_status, folder), ref=ref)


def _at_hand(path: Path, offset: int, end: int) -> bytes:
    """A small part of a blob, if the kernel has it in memory; else nothing.

    Clients ask for 32 KiB at a time, and a thread costs them more than the reading.
    """
    size = end - offset
    if not 0 < size <= _SMALL:
        return b""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = bytearray(size)
        read = os.preadv(file, [found], offset, os.RWF_NOWAIT)
    except OSError:  # it would have to wait for the disk, or the file system cannot tell
        return b""
    finally:
        os.close(file)
    return bytes(found) if read == size else b""


def _open(path: Path, offset: int, end: int) -> tuple[bytes, int | None]:
    """The first piece of a blob, and its file if there is more to be read.

    One step, not three: clients ask for many small parts.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        piece = _piece(file, offset, end)
    except BaseException:
        os.close(file)
        raise
    if piece and offset + len(piece) < end:
        return piece, file
    os.close(file)
    return piece, None


def _piece(file: int, offset: int, end: int) -> bytes:
    return os.pread(file, min(_CHUNK, end - offset), offset) if offset < end else b""


def _lookup(info: Info, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``content/adaptor.go``, which leaves ``size`` to be done)."""
    match fieldpath:
        case ["digest", *_]:
            return info.digest, True
        case ["labels", *key]:
            return labels_.lookup(info.labels, key)
        case _:
            return "", False


def _lookup_status(ref: str, fieldpath: Sequence[str]) -> tuple[str, bool]:
    return (ref, True) if fieldpath[0] == "ref" else ("", False)
