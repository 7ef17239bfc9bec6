"""A snapshotter as namespaces see it. Source: containerd's ``metadata/snapshot.go``."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync

from taskd import filters as filters_
from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TaskdError,
    Unknown,
)
from taskd.events import Bus
from taskd.metadata import Database, leases
from taskd.metadata import labels as labels_
from taskd.metadata.namespaces import ensure
from taskd.printable import quoted
from taskd.proto.containerd import events
from taskd.snapshots import records
from taskd.snapshots.drivers import Driver
from taskd.snapshots.folders import Folders, usage
from taskd.snapshots.records import Record
from taskd.snapshots.types import REF_LABEL, Info, Kind, Usage
from taskd.types import Mount
from taskd.wellknown import pack

__all__ = ["Snapshotter"]

_BATCH = 100


class Snapshotter:
    """`lease` is always the lease that the caller works under, if any.

    What is removed can no longer be asked for; its folder goes with the next `sweep`, or before
    `remove` returns if `sync_remove` is set.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        folders: Folders,
        driver: Driver,
        *,
        sync_remove: bool = False,
    ) -> None:
        self.name = driver.name
        self.root = folders.root
        self.capabilities = driver.capabilities
        self._database = database
        self._bus = bus
        self._folders = folders
        self._driver = driver
        self._sync_remove = sync_remove
        self._sweeping = anyio.Lock()
        self._littered = True
        """There may be folders that belong to no snapshot."""

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> Sequence[Mount]:
        """A new active snapshot, on the committed one `parent` if that is given.

        Raises `AlreadyExists` if there is one of that key, or one that the label `REF_LABEL`
        names (the lease holds it then); `NotFound` for the parent or the lease, `InvalidArgument`
        for a parent that is not committed or a bad label, `Unknown`.
        """
        mounts = await self._create(namespace, key, Kind.ACTIVE, parent, labels or {}, lease)
        event = events.SnapshotPrepare(key=key, parent=parent, snapshotter=self.name)
        await self._bus.publish(namespace, "/snapshot/prepare", pack(event))
        return mounts

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> Sequence[Mount]:
        """As `prepare`, of what is to be read only; no event tells of it."""
        return await self._create(namespace, key, Kind.VIEW, parent, labels or {}, lease)

    def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        """What to mount for an active snapshot or a view.

        Raises `NotFound`, `FailedPrecondition` for a committed one.
        """
        record = self._find(self._database.read, namespace, key)
        if record.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"{self._driver.mounting}: requested snapshot {record.inner} not active or view"
            )
        parents = records.chain(self._database.read, record.number)
        return self._driver.mounts(record.info.kind, record.number, parents)

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> None:
        """Make a committed snapshot of that name of the active one, which has its key no more.

        `parent`, if given, is one for a snapshot that has none. Labels are not taken over. Raises
        `AlreadyExists` for the name, `NotFound` for the key, the parent, or the lease,
        `FailedPrecondition` for one that is not active or whose parent is not committed, `Unknown`.
        """
        labels = labels or {}
        _validate(labels)
        measured = Usage()
        found = records.find(self._database.read, namespace, self.name, key)
        if found is not None and found.info.kind is Kind.ACTIVE:
            measured = await run_sync(usage, self._driver.files(found.number))

        def commit(connection: sqlite3.Connection) -> None:
            leases.hold(connection, namespace, lease, self._resource, name)
            if not name:
                raise Unknown("bucket name required")
            if records.find(connection.execute, namespace, self.name, name):
                raise AlreadyExists(f"snapshot {quoted(name)}")
            record = self._find(connection.execute, namespace, key)
            above = record.info.parent or parent
            base = None
            if above:
                base = self._find(connection.execute, namespace, above, "parent snapshot")
            stored = labels_.dump(labels)
            leases.release(connection, namespace, lease, self._resource, key)
            doing = self._driver.committing(record.inner)
            if record.info.kind is not Kind.ACTIVE:
                words = f"{doing}: snapshot {quoted(record.inner)} is not active"
                raise FailedPrecondition(words)
            if base is not None and base.info.kind is not Kind.COMMITTED:
                raise FailedPrecondition(f"{doing}: parent {quoted(base.inner)} is not committed")
            records.commit(connection, record.number, name, base, stored, measured)

        await self._database.write(commit)
        event = events.SnapshotCommit(key=key, name=name, snapshotter=self.name)
        await self._bus.publish(namespace, "/snapshot/commit", pack(event))

    async def remove(self, namespace: str, key: str, lease: str | None = None) -> None:
        """Remove a snapshot. Raises `NotFound`, `FailedPrecondition` for one on which others are.

        Whether it is mounted is not asked.
        """

        def remove(connection: sqlite3.Connection) -> None:
            record = self._find(connection.execute, namespace, key)
            if records.child(connection, record.number):
                raise FailedPrecondition("cannot remove snapshot with child")
            records.remove(connection, record.number)
            leases.release(connection, namespace, lease, self._resource, key)

        await self._database.write(remove, deletes=True)
        await self.removed(namespace, key)
        if self._sync_remove:
            await self.sweep()

    async def removed(self, namespace: str, key: str) -> None:
        """Tell of a snapshot whose record has been removed; its folder goes with a sweep."""
        self._littered = True
        event = events.SnapshotRemove(key=key, snapshotter=self.name)
        await self._bus.publish(namespace, "/snapshot/remove", pack(event))

    def stat(self, namespace: str, name: str) -> Info:
        """Raises `NotFound`."""
        return self._find(self._database.read, namespace, name).info

    async def update(self, namespace: str, info: Info, fieldpaths: Sequence[str] = ()) -> Info:
        """Replace a snapshot's labels, or those that `fieldpaths` name; returns the result.

        Paths are ``labels`` and ``labels.<key>``; nothing else may change. Raises
        `InvalidArgument`, `NotFound`.
        """
        if not info.name:
            raise InvalidArgument

        def update(connection: sqlite3.Connection) -> Info:
            record = self._find(connection.execute, namespace, info.name)
            owner = f"snapshot {quoted(info.name)}"
            labels = labels_.updated(record.info.labels, info.labels, fieldpaths, owner)
            _validate(labels)
            try:
                stored = labels_.dump(labels)
            except TaskdError as error:
                raise error.within("failed to read labels") from None
            now = records.set_labels(connection, record.number, stored)
            return replace(record.info, labels=labels_.load(stored), updated_at=now)

        return await self._database.write(update)

    async def usage(self, namespace: str, key: str) -> Usage:
        """What a snapshot takes: a committed one as it was measured then, a view nothing.

        Raises `NotFound`, `Unknown`.
        """
        record = self._find(self._database.read, namespace, key)
        if record.info.kind is Kind.ACTIVE:
            return await run_sync(usage, self._driver.files(record.number))
        return record.usage

    async def list(self, namespace: str, filters: Iterable[str] = ()) -> AsyncIterator[Info]:
        """The snapshots that pass one of `filters`, by name; read by and by.

        Raises `InvalidArgument` for a filter that does not compile.
        """
        matches = await filters_.prepare(filters)
        after: str | None = None
        while found := records.some(self._database.read, namespace, self.name, after, _BATCH):
            for record in found:
                if matches.match(functools.partial(_lookup, record.info)):
                    yield record.info
            after = found[-1].info.name
            await anyio.lowlevel.checkpoint()

    async def sweep(self) -> None:
        """Remove the folders that belong to no snapshot (any more). Raises OSError.

        They are those of what was removed or collected, and of what a daemon leaves that died
        between two steps.
        """

        def set_aside(connection: sqlite3.Connection) -> None:
            self._folders.set_aside(records.numbers(connection.execute, self.name))

        async with self._sweeping:
            if self._littered:
                self._littered = False
                try:
                    await self._database.maintain(set_aside)
                    await run_sync(self._folders.clear)
                except BaseException:
                    self._littered = True
                    raise

    @property
    def _resource(self) -> str:
        return f"snapshots/{self.name}"

    async def _create(
        self,
        namespace: str,
        key: str,
        kind: Kind,
        parent: str,
        labels: Mapping[str, str],
        lease: str | None,
    ) -> Sequence[Mount]:
        _validate(labels)
        copied: int | None = None

        def create(connection: sqlite3.Connection) -> Sequence[Mount] | AlreadyExists:
            ensure(connection, namespace)
            if taken := self._taken(connection.execute, namespace, key, labels):
                # What the lease holds from now on is to stay: this transaction does not fail.
                leases.hold(connection, namespace, lease, self._resource, taken.name)
                return AlreadyExists(taken.words)
            base = self._base(connection.execute, namespace, parent) if parent else None
            if base is not None and copied not in (None, base.number):
                raise NotFound(f"parent snapshot {parent} does not exist")
            stored = labels_.dump(labels)
            number = records.insert(connection, namespace, self.name, key, kind, base, stored)
            parents = records.chain(connection.execute, number)
            self._driver.make(made, kind, parents, labels)
            leases.hold(connection, namespace, lease, self._resource, key)
            if not key:
                raise Unknown("bucket name required")
            if made.exists():
                self._folders.place(made, number)
            return self._driver.mounts(kind, number, parents)

        with self._folders.making() as made:
            try:
                if self._driver.copies and parent and kind is Kind.ACTIVE:
                    select = self._database.read
                    if not self._taken(select, namespace, key, labels):
                        copied = self._base(select, namespace, parent).number
                        await self._driver.copy(made, copied)
                with anyio.CancelScope(shield=True):
                    created = await self._database.write(create)
            except BaseException:
                self._littered = True
                with anyio.CancelScope(shield=True):
                    await run_sync(self._folders.discard, made)
                raise
        if isinstance(created, AlreadyExists):
            raise created
        return created

    def _taken(
        self, select: records.Select, namespace: str, key: str, labels: Mapping[str, str]
    ) -> _Taken | None:
        """What is there already, so that nothing need or can be made."""
        target = labels.get(REF_LABEL, "")
        if target and records.find(select, namespace, self.name, target):
            return _Taken(target, f"target snapshot {quoted(target)}")
        if records.find(select, namespace, self.name, key):
            return _Taken(key, f"snapshot {quoted(key)}")
        return None

    def _base(self, select: records.Select, namespace: str, parent: str) -> Record:
        """What to make a snapshot on. Raises `NotFound`, `InvalidArgument`."""
        base = self._find(select, namespace, parent, "parent snapshot")
        if base.info.kind is not Kind.COMMITTED:
            words = f"parent {quoted(base.inner)} is not committed snapshot"
            raise InvalidArgument(f"failed to create snapshot: {words}")
        return base

    def _find(
        self, select: records.Select, namespace: str, name: str, what: str = "snapshot"
    ) -> Record:
        record = records.find(select, namespace, self.name, name)
        if record is None:
            raise NotFound(f"{what} {name} does not exist")
        return record


class _Taken(NamedTuple):
    name: str
    words: str


def _validate(labels: Mapping[str, str]) -> None:
    try:
        labels_.validate(labels)
    except InvalidArgument as error:
        raise error.within("info.Labels") from None


def _lookup(info: Info, fieldpath: Sequence[str]) -> tuple[str, bool]:
    """What filters may ask about (``metadata/adaptors.go``)."""
    match fieldpath:
        case ["kind", *_]:
            return info.kind.name.lower(), True
        case ["name", *_]:
            return info.name, True
        case ["parent", *_]:
            return info.parent, True
        case ["labels", *key]:
            return labels_.lookup(info.labels, key)
        case _:
            return "", False
