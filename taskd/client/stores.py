"""Namespaces, leases, content and snapshots, in few words.

What they raise are the classes of `taskd.errors`; what they return are containerd's messages.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from taskd import digests
from taskd.client.channel import LEASE, Channel
from taskd.client.cleanup import whatever_happens
from taskd.errors import AlreadyExists, NotFound
from taskd.proto.containerd.services.content.v1 import (
    ContentStub,
    DeleteContentRequest,
    ListContentRequest,
    ReadContentRequest,
    UpdateRequest,
    WriteAction,
    WriteContentRequest,
)
from taskd.proto.containerd.services.content.v1 import Info as ContentInfo
from taskd.proto.containerd.services.content.v1 import InfoRequest as ContentInfoRequest
from taskd.proto.containerd.services.leases.v1 import (
    CreateRequest,
    DeleteRequest,
    Lease,
    LeasesStub,
    ListRequest,
)
from taskd.proto.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    ListNamespacesRequest,
    Namespace,
    NamespacesStub,
)
from taskd.proto.containerd.services.snapshots.v1 import (
    CommitSnapshotRequest,
    Info,
    ListSnapshotsRequest,
    MountsRequest,
    PrepareSnapshotRequest,
    RemoveSnapshotRequest,
    SnapshotsStub,
    StatSnapshotRequest,
    ViewSnapshotRequest,
)
from taskd.proto.containerd.types import Mount
from taskd.proto.google.protobuf import FieldMask

__all__ = ["Content", "Leases", "Namespaces", "Snapshots"]

CHUNK = 1 << 20


class Namespaces:
    """All that there are."""

    def __init__(self, channel: Channel) -> None:
        self._stub = NamespacesStub(channel)

    async def create(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        namespace = Namespace(name=name, labels=dict(labels or {}))
        await self._stub.create(CreateNamespaceRequest(namespace=namespace))

    async def list(self) -> list[Namespace]:
        found: list[Namespace] = (await self._stub.list(ListNamespacesRequest())).namespaces
        return found

    async def delete(self, name: str) -> None:
        """Raises `FailedPrecondition` as long as there is something in it."""
        await self._stub.delete(DeleteNamespaceRequest(name=name))


class Leases:
    """What holds that which nothing else refers to."""

    def __init__(self, channel: Channel) -> None:
        self._stub = LeasesStub(channel)

    async def create(
        self,
        id: str | None = None,  # noqa: A002
        *,
        seconds: float | None = None,
    ) -> Lease:
        """One that expires after so many `seconds`, if not for ever."""
        labels = {}
        if seconds is not None:
            end = datetime.now(UTC) + timedelta(seconds=seconds)
            labels["containerd.io/gc.expire"] = end.isoformat(timespec="seconds")
        made = await self._stub.create(CreateRequest(id=id or uuid.uuid4().hex, labels=labels))
        lease: Lease = made.lease
        return lease

    async def list(self, *filters: str) -> list[Lease]:
        found: list[Lease] = (await self._stub.list(ListRequest(filters=list(filters)))).leases
        return found

    async def delete(self, id: str, *, sync: bool = False) -> None:  # noqa: A002
        """With `sync`, what nothing holds any more is gone when it returns."""
        await self._stub.delete(DeleteRequest(id=id, sync=sync))

    @asynccontextmanager
    async def hold(self, seconds: float = 24 * 3600.0) -> AsyncIterator[str]:
        """A lease for what is made within; it goes with the context, or after `seconds`."""
        if outer := LEASE.get():
            yield outer
            return
        lease = await self.create(seconds=seconds)
        before = LEASE.get()
        LEASE.set(lease.id)
        try:
            yield lease.id
        finally:
            LEASE.set(before)
            await whatever_happens(self._drop(lease.id))

    async def _drop(self, id: str) -> None:  # noqa: A002
        with suppress(NotFound):
            await self.delete(id)


class Content:
    """Blobs, by their digests."""

    def __init__(self, channel: Channel) -> None:
        self._stub = ContentStub(channel)

    async def info(self, digest: str) -> ContentInfo:
        found: ContentInfo = (await self._stub.info(ContentInfoRequest(digest=digest))).info
        return found

    async def list(self, *filters: str) -> list[ContentInfo]:
        stream = self._stub.list(ListContentRequest(filters=list(filters)))
        return [info async for answer in stream for info in answer.info]

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels, and leave its others."""
        info = ContentInfo(digest=digest, labels=dict(labels))
        mask = FieldMask(paths=[f"labels.{name}" for name in labels])
        await self._stub.update(UpdateRequest(info=info, update_mask=mask))

    async def delete(self, digest: str) -> None:
        await self._stub.delete(DeleteContentRequest(digest=digest))

    async def read(self, digest: str) -> bytes:
        """The whole blob."""
        return b"".join([piece async for piece in self.pieces(digest)])

    async def pieces(self, digest: str) -> AsyncIterator[bytes]:
        """The same, piece by piece."""
        stream = self._stub.read(ReadContentRequest(digest=digest))
        async with aclosing(stream) as answers:
            async for answer in answers:
                yield answer.data

    async def write(
        self,
        data: bytes | AsyncIterable[bytes],
        *,
        digest: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Keep a blob; its digest. One that is there already is left as it is.

        Raises `FailedPrecondition` if it does not have the `digest` that was given.
        """
        if isinstance(data, bytes):
            digest = digest or digests.of(data)
        ref = f"client-{digest or uuid.uuid4().hex}-{uuid.uuid4().hex[:8]}"

        async def requests() -> AsyncIterator[WriteContentRequest]:
            offset = 0
            async for piece in _pieces(data):
                yield WriteContentRequest(
                    action=WriteAction.WRITE, ref=ref, offset=offset, data=piece
                )
                offset += len(piece)
            yield WriteContentRequest(
                action=WriteAction.COMMIT,
                ref=ref,
                offset=offset,
                total=offset,
                expected=digest,
                labels=dict(labels or {}),
            )

        written = digest
        try:
            async for answer in self._stub.write(requests()):
                written = answer.digest
        except AlreadyExists:
            if labels and digest:
                await self.label(digest, labels)
            if digest:
                return digest
            raise
        return written


async def _pieces(data: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]
        return
    async for piece in data:
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK]


class Snapshots:
    """Those of one snapshotter. Raises `Unimplemented` where the daemon has none."""

    def __init__(self, channel: Channel, snapshotter: str) -> None:
        self.name = snapshotter
        self._stub = SnapshotsStub(channel)

    async def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """One that can be written to, on `parent`; its mounts."""
        request = PrepareSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {})
        )
        mounts: list[Mount] = (await self._stub.prepare(request)).mounts
        return mounts

    async def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """One that cannot; its mounts."""
        request = ViewSnapshotRequest(
            snapshotter=self.name, key=key, parent=parent, labels=dict(labels or {})
        )
        mounts: list[Mount] = (await self._stub.view(request)).mounts
        return mounts

    async def mounts(self, key: str) -> list[Mount]:
        request = MountsRequest(snapshotter=self.name, key=key)
        mounts: list[Mount] = (await self._stub.mounts(request)).mounts
        return mounts

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Make `key` one that others can be prepared on, as `name`."""
        await self._stub.commit(
            CommitSnapshotRequest(
                snapshotter=self.name, name=name, key=key, labels=dict(labels or {})
            )
        )

    async def stat(self, key: str) -> Info:
        request = StatSnapshotRequest(snapshotter=self.name, key=key)
        found: Info = (await self._stub.stat(request)).info
        return found

    async def list(self, filters: Sequence[str] = ()) -> list[Info]:
        request = ListSnapshotsRequest(snapshotter=self.name, filters=list(filters))
        return [info async for answer in self._stub.list(request) for info in answer.info]

    async def remove(self, key: str) -> None:
        await self._stub.remove(RemoveSnapshotRequest(snapshotter=self.name, key=key))
