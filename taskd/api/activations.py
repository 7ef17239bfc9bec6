"""``containerd.services.mounts.v1.Mounts``; source: ``services/mounts/service.go`` (2.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from taskd.activations import Activation, MountManager
from taskd.api import request
from taskd.api.mounts import mount_messages, mounts
from taskd.errors import Unimplemented
from taskd.proto.containerd import types
from taskd.proto.containerd.services.mounts import v1
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import timestamp

__all__ = ["Mounts"]


class Mounts(v1.MountsBase):
    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    async def activate(self, message: v1.ActivateRequest) -> v1.ActivateResponse:
        activation = await self._manager.activate(
            request.namespace(),
            message.name,
            mounts(message.mounts),
            message.labels,
            temporary=message.temporary,
            lease=request.lease(),
        )
        return v1.ActivateResponse(info=_to_message(activation))

    async def deactivate(self, message: v1.DeactivateRequest) -> Empty:
        await self._manager.deactivate(request.namespace(), message.name)
        return Empty()

    async def info(self, message: v1.InfoRequest) -> v1.InfoResponse:
        return v1.InfoResponse(
            info=_to_message(self._manager.info(request.namespace(), message.name))
        )

    async def update(self, message: v1.UpdateRequest) -> v1.UpdateResponse:
        """Not in containerd either."""
        raise Unimplemented

    async def list(self, message: v1.ListRequest) -> AsyncGenerator[v1.ListMessage]:
        """All of them whatever the filters, as containerd does."""
        for each in self._manager.list(request.namespace()):
            yield v1.ListMessage(info=_to_message(each))


def _to_message(found: Activation) -> types.ActivationInfo:
    return types.ActivationInfo(
        name=found.name,
        active=[
            types.ActiveMount(
                mount=mount_messages([each.mount])[0],
                mounted_at=timestamp(each.at),
                mount_point=each.point,
            )
            for each in found.active
        ],
        system=mount_messages(found.system),
        labels=dict(found.labels),
    )
