"""``containerd.services.leases.v1.Leases``; source: ``services/leases/service.go``."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Awaitable, Callable

from taskd.api import request
from taskd.metadata import Lease, LeaseStore, Resource
from taskd.proto.containerd.services.leases import v1
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import timestamp

__all__ = ["Leases"]


class Leases(v1.LeasesBase):
    def __init__(self, store: LeaseStore, collect: Callable[[], Awaitable[None]]) -> None:
        """`collect` returns when garbage has been collected that there is now."""
        self._store = store
        self._collect = collect

    async def create(self, message: v1.CreateRequest) -> v1.CreateResponse:
        lease = await self._store.create(
            request.namespace(), message.id or _random_id(), message.labels
        )
        return v1.CreateResponse(lease=_to_message(lease))

    async def delete(self, message: v1.DeleteRequest) -> Empty:
        """A synchronous deletion collects the garbage there is before it returns."""
        await self._store.delete(request.namespace(), message.id)
        if message.sync:
            await self._collect()
        return Empty()

    async def list(self, message: v1.ListRequest) -> v1.ListResponse:
        leases = await self._store.list(request.namespace(), message.filters)
        return v1.ListResponse(leases=[_to_message(lease) for lease in leases])

    async def add_resource(self, message: v1.AddResourceRequest) -> Empty:
        await self._store.add_resource(request.namespace(), message.id, _resource(message.resource))
        return Empty()

    async def delete_resource(self, message: v1.DeleteResourceRequest) -> Empty:
        await self._store.delete_resource(
            request.namespace(), message.id, _resource(message.resource)
        )
        return Empty()

    async def list_resources(self, message: v1.ListResourcesRequest) -> v1.ListResourcesResponse:
        resources = await self._store.list_resources(request.namespace(), message.id)
        return v1.ListResourcesResponse(
            resources=[v1.Resource(id=each.id, type=each.type) for each in resources]
        )


def _random_id() -> str:
    """``<nanoseconds of this second>-<three random bytes>`` (``leases/id.go``)."""
    return f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()}"


def _to_message(lease: Lease) -> v1.Lease:
    return v1.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=dict(lease.labels))


def _resource(message: v1.Resource | None) -> Resource:
    message = message or v1.Resource()
    return Resource(message.id, message.type)
