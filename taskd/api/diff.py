"""``containerd.services.diff.v1.Diff``; source: ``services/diff/local.go``."""

from __future__ import annotations

from taskd.api import request
from taskd.api.descriptors import descriptor, descriptor_message
from taskd.api.mounts import mounts
from taskd.diff.differ import Differ
from taskd.proto.containerd.services.diff import v1
from taskd.wellknown import nanoseconds

__all__ = ["Diff"]


class Diff(v1.DiffBase):
    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def apply(self, message: v1.ApplyRequest) -> v1.ApplyResponse:
        """Payloads are for processors that are configured in containerd; here there are none."""
        namespace, layer = request.namespace(), descriptor(message.diff)
        request.subject.set(layer.digest)
        applied = await self._differ.apply(
            namespace, layer, mounts(message.mounts), sync=message.sync_fs
        )
        return v1.ApplyResponse(applied=descriptor_message(applied))

    async def diff(self, message: v1.DiffRequest) -> v1.DiffResponse:
        epoch = message.source_date_epoch
        made = await self._differ.diff(
            request.namespace(),
            mounts(message.left),
            mounts(message.right),
            media_type=message.media_type,
            ref=message.ref,
            labels=message.labels,
            latest=None if epoch is None else nanoseconds(epoch),
            lease=request.lease(),
        )
        return v1.DiffResponse(diff=descriptor_message(made))
