"""A write in a namespace. Source: containerd's ``namespacedWriter`` (``metadata/content.go``)."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import anyio
from anyio.from_thread import check_cancelled
from anyio.to_thread import run_sync

from taskd.content import records
from taskd.content.files import Files
from taskd.content.ingest import Ingest, Status
from taskd.content.locks import Locks
from taskd.errors import AlreadyExists, FailedPrecondition, NotFound, TaskdError
from taskd.metadata import labels as labels_
from taskd.metadata import leases
from taskd.metadata.database import Database
from taskd.metadata.namespaces import ensure

__all__ = ["Shared", "Writer"]

_log = logging.getLogger(__name__)


class Shared(NamedTuple):
    """What a writer expects, if a namespace has it already: nothing need be written."""

    digest: str
    size: int
    begun_at: int


class Writer:
    """One write, its user's own from `open` to `close`.

    It has files of its own, unless what it expects is there already: then only once it is given
    other bytes.
    """

    def __init__(
        self,
        database: Database,
        files: Files,
        locks: Locks,
        namespace: str,
        ref: str,
        lease: str | None,
        source: Shared | None,
    ) -> None:
        self._database = database
        self._files = files
        self._locks = locks
        self._namespace = namespace
        self._ref = ref
        self._lease = lease
        self._source = source
        self._key = records.key(namespace, ref)
        self._folder = files.ingest(self._key)
        self._ingest: Ingest | None = None
        self._locked = False

    @property
    def status(self) -> Status:
        if self._ingest is not None:
            return replace(self._ingest.status, ref=self._ref)
        assert self._source is not None
        size, at = self._source.size, self._source.begun_at
        return Status(self._ref, size, size, at, at, self._source.digest)

    @property
    def digest(self) -> str:
        """Of what has been written so far."""
        if self._ingest is not None:
            return self._ingest.digest
        assert self._source is not None
        return self._source.digest

    async def open(self, total: int) -> Ingest:
        """Begin or resume the write on disk, of `total` bytes if that is above 0.

        Raises `Unavailable` if another has it open, `Unknown` for what the disk says.
        """
        await self._locks.acquire(self._key)
        self._locked = True
        self._ingest = await run_sync(Ingest.open, self._folder, self._key, total, check_cancelled)
        return self._ingest

    async def write(self, content: bytes) -> None:
        """Append. Raises `Unknown` for what the disk says."""
        if content:
            ingest = self._ingest or await self._part(copy=True)
            await run_sync(ingest.write, content)

    async def truncate(self) -> None:
        """Begin anew. Raises `Unknown`."""
        ingest = self._ingest or await self._part(copy=False)
        await run_sync(ingest.truncate)

    async def commit(self, size: int, expected: str, labels: Mapping[str, str]) -> None:
        """Make a blob of what was written, with these labels, and end the write.

        Raises `FailedPrecondition` if it is not of that size in bytes (0: whatever there is) or
        that digest (empty: whatever it is), and then may be resumed; `AlreadyExists` if the
        namespace has it already, `InvalidArgument` for a bad label, `NotFound` for a lease that
        there is not.
        """
        try:
            labels_.validate(labels)
        except TaskdError as error:
            raise error.within("info.Labels") from None
        link = partial(self._link, labels_.dump(labels))
        await self._verify(size, expected)
        with anyio.CancelScope(shield=True):
            added, source = await self._database.write(link)
            try:
                await run_sync(self._files.discard, self._folder)
            except TaskdError as error:
                _log.warning("%s", error)  # it is committed all the same
            if source and source != self.digest:
                await self._database.maintain(partial(records.remove_unused, self._files, source))
            await self.close()
        if not added:
            raise AlreadyExists(f"content {self.digest}")

    async def close(self) -> None:
        """Leave the write; if it was not committed, it may be resumed."""
        if self._locked:
            self._locks.leave(self._key)
        if self._ingest is not None:
            with anyio.CancelScope(shield=True):
                await run_sync(self._ingest.close)
        if self._locked:
            self._locked = False
            self._locks.release(self._key)

    async def _part(self, *, copy: bool) -> Ingest:
        """Go on with files of its own, into which what is there already is copied."""
        source = self._source
        assert source is not None
        ingest = await self.open(source.size if copy else 0)
        await run_sync(ingest.truncate)
        if copy:
            await run_sync(ingest.copy, self._files.blob(source.digest), check_cancelled)
        return ingest

    async def _verify(self, size: int, expected: str) -> None:
        offset = self.status.offset
        if size and size != offset:
            raise FailedPrecondition(f'"{self._ref}" failed size validation: {offset} != {size}')
        if self._ingest is not None:
            await run_sync(self._ingest.sync)
        if expected and expected != self.digest:
            if self._ingest is None:
                raise FailedPrecondition(f'"{self._ref}" unexpected digest')
            raise FailedPrecondition(f"unexpected commit digest {self.digest}, expected {expected}")

    def _link(self, labels: str, connection: sqlite3.Connection) -> tuple[bool, str]:
        """Give the blob to the namespace; within a transaction nobody can remove it meanwhile.

        Returns whether the namespace did not have it before, and what the write had expected.
        """
        digest, now = self.digest, time.time_ns()
        # First what may be refused: after the file's move the write could not be resumed.
        leases.release(connection, self._namespace, self._lease, "ingests", self._ref)
        leases.hold(connection, self._namespace, self._lease, "content", digest)
        if self._ingest is not None:
            self._files.place(self._ingest.data, digest)
        elif self._files.size(digest) is None:
            raise NotFound(f"content {digest}")
        ensure(connection, self._namespace)
        added = connection.execute(
            "INSERT INTO blobs (namespace, digest, size, labels, created_at, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self._namespace, digest, self.status.offset, labels, now, now),
        )
        source = records.end(connection, self._namespace, self._ref)
        return added.rowcount == 1, source or ""
