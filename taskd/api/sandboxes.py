"""``containerd.services.sandbox.v1``; sources: ``services/sandbox/store_service.go``,
``sandbox/helpers.go``.
"""

from __future__ import annotations

from taskd.api import request
from taskd.metadata import Sandbox, SandboxStore
from taskd.proto.containerd import types
from taskd.proto.containerd.services.sandbox import v1
from taskd.proto.google.protobuf import Any
from taskd.types import TypedValue
from taskd.wellknown import from_any, timestamp, to_any

__all__ = ["Sandboxes"]


class Sandboxes(v1.StoreBase):
    """What is known of sandboxes; no events tell of it, as in containerd."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def create(self, message: v1.StoreCreateRequest) -> v1.StoreCreateResponse:
        sandbox = await self._store.create(request.namespace(), _from_message(message.sandbox))
        return v1.StoreCreateResponse(sandbox=_to_message(sandbox))

    async def update(self, message: v1.StoreUpdateRequest) -> v1.StoreUpdateResponse:
        sandbox = _from_message(message.sandbox)
        sandbox = await self._store.update(request.namespace(), sandbox, message.fields)
        return v1.StoreUpdateResponse(sandbox=_to_message(sandbox))

    async def delete(self, message: v1.StoreDeleteRequest) -> v1.StoreDeleteResponse:
        await self._store.delete(request.namespace(), message.sandbox_id)
        return v1.StoreDeleteResponse()

    async def list(self, message: v1.StoreListRequest) -> v1.StoreListResponse:
        sandboxes = await self._store.list(request.namespace(), message.filters)
        return v1.StoreListResponse(list=[_to_message(each) for each in sandboxes])

    async def get(self, message: v1.StoreGetRequest) -> v1.StoreGetResponse:
        sandbox = self._store.get(request.namespace(), message.sandbox_id)
        return v1.StoreGetResponse(sandbox=_to_message(sandbox))


def _to_message(sandbox: Sandbox) -> types.Sandbox:
    return types.Sandbox(
        sandbox_id=sandbox.id,
        runtime=types.SandboxRuntime(
            name=sandbox.runtime_name, options=to_any(sandbox.runtime_options)
        ),
        spec=to_any(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=timestamp(sandbox.created_at),
        updated_at=timestamp(sandbox.updated_at),
        extensions={
            name: Any(type_url=extension.type_url, value=extension.value)
            for name, extension in sandbox.extensions.items()
        },
        sandboxer=sandbox.sandboxer,
    )


def _from_message(message: types.Sandbox | None) -> Sandbox:
    """The record that a client sends; the times are not its to say."""
    if message is None:
        return Sandbox("")
    runtime = message.runtime or types.SandboxRuntime()
    return Sandbox(
        id=message.sandbox_id,
        runtime_name=runtime.name,
        runtime_options=from_any(runtime.options),
        spec=from_any(message.spec),
        labels=message.labels,
        extensions={
            name: TypedValue(extension.type_url, extension.value)
            for name, extension in message.extensions.items()
        },
        sandboxer=message.sandboxer,
    )
