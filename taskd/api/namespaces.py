"""``containerd.services.namespaces.v1.Namespaces``; source: ``services/namespaces/local.go``."""

from __future__ import annotations

from taskd.events import Bus
from taskd.metadata import NamespaceStore
from taskd.proto.containerd import events
from taskd.proto.containerd.services.namespaces import v1
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import pack

__all__ = ["Namespaces"]


class Namespaces(v1.NamespacesBase):
    """Events are of the namespace that they are about, whatever the caller's is."""

    def __init__(self, store: NamespaceStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def get(self, message: v1.GetNamespaceRequest) -> v1.GetNamespaceResponse:
        """A namespace that does not exist is given as one without labels."""
        labels = self._store.labels(message.name)
        return v1.GetNamespaceResponse(namespace=v1.Namespace(name=message.name, labels=labels))

    async def list(self, message: v1.ListNamespacesRequest) -> v1.ListNamespacesResponse:
        """All namespaces; containerd ignores the request's filter."""
        return v1.ListNamespacesResponse(
            namespaces=[
                v1.Namespace(name=each.name, labels=dict(each.labels))
                for each in self._store.list()
            ]
        )

    async def create(self, message: v1.CreateNamespaceRequest) -> v1.CreateNamespaceResponse:
        namespace = message.namespace or v1.Namespace()
        await self._store.create(namespace.name, namespace.labels)
        event = events.NamespaceCreate(name=namespace.name, labels=namespace.labels)
        await self._bus.publish(namespace.name, "/namespaces/create", pack(event))
        return v1.CreateNamespaceResponse(namespace=namespace)

    async def update(self, message: v1.UpdateNamespaceRequest) -> v1.UpdateNamespaceResponse:
        """Answers with an empty namespace, as containerd does."""
        namespace = message.namespace or v1.Namespace()
        paths = message.update_mask.paths if message.update_mask else ()
        await self._store.update(namespace.name, namespace.labels, paths)
        event = events.NamespaceUpdate(name=namespace.name, labels=namespace.labels)
        await self._bus.publish(namespace.name, "/namespaces/update", pack(event))
        return v1.UpdateNamespaceResponse(namespace=v1.Namespace())

    async def delete(self, message: v1.DeleteNamespaceRequest) -> Empty:
        await self._store.delete(message.name)
        event = events.NamespaceDelete(name=message.name)
        await self._bus.publish(message.name, "/namespaces/delete", pack(event))
        return Empty()
