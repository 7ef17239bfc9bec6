"""``containerd.services.snapshots.v1.Snapshots``; source: ``services/snapshots/service.go``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from taskd.api import request
from taskd.api.mounts import mount_messages
from taskd.errors import InvalidArgument, TaskdError, Unimplemented, Unknown
from taskd.proto.containerd.services.snapshots import v1
from taskd.proto.google.protobuf import Empty
from taskd.snapshots import Info, Snapshotter
from taskd.wellknown import timestamp

__all__ = ["Snapshots"]

_BATCH = 100  # infos in one message of List


class Snapshots(v1.SnapshotsBase):
    def __init__(self, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._snapshotters = snapshotters

    def _get(self, name: str) -> Snapshotter:
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        if name not in self._snapshotters:
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return self._snapshotters[name]

    async def prepare(self, message: v1.PrepareSnapshotRequest) -> v1.PrepareSnapshotResponse:
        snapshotter = self._get(message.snapshotter)
        request.subject.set(message.key)
        mounts = await snapshotter.prepare(
            request.namespace(), message.key, message.parent, message.labels, request.lease()
        )
        return v1.PrepareSnapshotResponse(mounts=mount_messages(mounts))

    async def view(self, message: v1.ViewSnapshotRequest) -> v1.ViewSnapshotResponse:
        snapshotter = self._get(message.snapshotter)
        mounts = await snapshotter.view(
            request.namespace(), message.key, message.parent, message.labels, request.lease()
        )
        return v1.ViewSnapshotResponse(mounts=mount_messages(mounts))

    async def mounts(self, message: v1.MountsRequest) -> v1.MountsResponse:
        snapshotter = self._get(message.snapshotter)
        mounts = snapshotter.mounts(request.namespace(), message.key)
        return v1.MountsResponse(mounts=mount_messages(mounts))

    async def commit(self, message: v1.CommitSnapshotRequest) -> Empty:
        await self._get(message.snapshotter).commit(
            request.namespace(),
            message.name,
            message.key,
            message.parent,
            message.labels,
            request.lease(),
        )
        return Empty()

    async def remove(self, message: v1.RemoveSnapshotRequest) -> Empty:
        snapshotter = self._get(message.snapshotter)
        await snapshotter.remove(request.namespace(), message.key, request.lease())
        return Empty()

    async def stat(self, message: v1.StatSnapshotRequest) -> v1.StatSnapshotResponse:
        snapshotter = self._get(message.snapshotter)
        info = snapshotter.stat(request.namespace(), message.key)
        return v1.StatSnapshotResponse(info=_to_message(info))

    async def update(self, message: v1.UpdateSnapshotRequest) -> v1.UpdateSnapshotResponse:
        snapshotter = self._get(message.snapshotter)
        wanted = message.info or v1.Info()
        paths = message.update_mask.paths if message.update_mask else ()
        info = await snapshotter.update(
            request.namespace(), Info(wanted.name, labels=wanted.labels), paths
        )
        return v1.UpdateSnapshotResponse(info=_to_message(info))

    async def list(
        self, message: v1.ListSnapshotsRequest
    ) -> AsyncGenerator[v1.ListSnapshotsResponse]:
        snapshotter = self._get(message.snapshotter)
        batch: list[v1.Info] = []
        try:
            async for info in snapshotter.list(request.namespace(), message.filters):
                batch.append(_to_message(info))
                if len(batch) == _BATCH:
                    yield v1.ListSnapshotsResponse(info=batch)
                    batch = []
        except TaskdError as error:
            # containerd forgets to give errors their statuses here.
            raise Unknown(error.message) from None
        if batch:
            yield v1.ListSnapshotsResponse(info=batch)

    async def usage(self, message: v1.UsageRequest) -> v1.UsageResponse:
        snapshotter = self._get(message.snapshotter)
        usage = await snapshotter.usage(request.namespace(), message.key)
        return v1.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, message: v1.CleanupRequest) -> Empty:
        """Not in containerd either: its collector does it."""
        self._get(message.snapshotter)
        raise Unimplemented("snapshotter does not implement Cleanup method")


def _to_message(info: Info) -> v1.Info:
    return v1.Info(
        name=info.name,
        parent=info.parent,
        kind=v1.Kind(info.kind),
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )
