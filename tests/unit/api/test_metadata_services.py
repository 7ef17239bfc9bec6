"""The containers, namespaces and leases services, called as their server calls them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import betterproto2
import pytest

from taskd.api import request
from taskd.api.containers import Containers
from taskd.api.leases import Leases
from taskd.api.namespaces import Namespaces
from taskd.content import ContentStore
from taskd.errors import FailedPrecondition, InvalidArgument, NotFound
from taskd.events import Bus, Journal
from taskd.gc.collector import Collector
from taskd.metadata import Database, LeaseStore, NamespaceStore
from taskd.metadata.told import ToldContainers
from taskd.proto.containerd import events
from taskd.proto.containerd.services.containers import v1 as containers
from taskd.proto.containerd.services.leases import v1 as leases
from taskd.proto.containerd.services.namespaces import v1 as namespaces
from taskd.proto.google import protobuf
from taskd.types import TypedValue
from taskd.wellknown import nanoseconds, pack

Published = tuple[str, str, TypedValue]


class Recorder(Bus):
    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.published: list[Published] = []

    async def publish(self, namespace: str, topic: str, event: TypedValue) -> None:
        self.published.append((namespace, topic, event))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "metadata.db") as opened:
        yield opened


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Recorder]:
    with Journal(tmp_path / "events.db") as journal:
        yield Recorder(journal)


@contextmanager
def calling(namespace: str | None) -> Iterator[None]:
    metadata = {} if namespace is None else {request.NAMESPACE_HEADER: namespace}
    token = request.current.set(cast("request.Stream", SimpleNamespace(metadata=metadata)))
    yield
    request.current.reset(token)


@pytest.fixture(autouse=True)
def _in_a_namespace() -> Iterator[None]:
    with calling("ns"):
        yield


def published(namespace: str, topic: str, event: betterproto2.Message) -> Published:
    return namespace, topic, pack(event)


def container(**fields: Any) -> containers.Container:
    runtime = containers.ContainerRuntime(
        name="runtime", options=protobuf.Any(type_url="options", value=b"o")
    )
    spec = protobuf.Any(type_url="spec", value=b"{}")
    return containers.Container(**{"id": "c1", "runtime": runtime, "spec": spec, **fields})


class TestContainers:
    @pytest.fixture
    def service(self, database: Database, bus: Recorder) -> Containers:
        return Containers(ToldContainers(database, bus))

    async def create(self, service: Containers, **fields: Any) -> containers.Container:
        message = containers.CreateContainerRequest(container=container(**fields))
        created = (await service.create(message)).container
        assert created is not None
        return created

    async def test_create_and_get(self, service: Containers, bus: Recorder) -> None:
        before = time.time_ns()
        fields: dict[str, Any] = {
            "labels": {"a": "1"},
            "image": "image",
            "snapshotter": "overlayfs",
            "snapshot_key": "key",
            "extensions": {"x": protobuf.Any(type_url="ext", value=b"\xff")},
            "sandbox": "sandbox",
        }
        created = await self.create(
            service, **fields, created_at=protobuf.Timestamp(seconds=1, nanos=2)
        )
        assert before <= nanoseconds(created.created_at) <= time.time_ns()
        assert created == container(
            **fields, created_at=created.created_at, updated_at=created.created_at
        )
        got = await service.get(containers.GetContainerRequest(id="c1"))
        assert got == containers.GetContainerResponse(container=created)
        runtime = events.ContainerCreateRuntime(
            name="runtime", options=protobuf.Any(type_url="options", value=b"o")
        )
        event = events.ContainerCreate(id="c1", image="image", runtime=runtime)
        assert bus.published == [published("ns", "/containers/create", event)]

    async def test_the_runtime_is_always_told(self, service: Containers) -> None:
        created = await self.create(service, runtime=containers.ContainerRuntime(name="r"))
        assert created.runtime == containers.ContainerRuntime(name="r")

    async def test_update(self, service: Containers, bus: Recorder) -> None:
        await self.create(service, labels={"a": "1"}, image="i", snapshotter="s", snapshot_key="k")
        bus.published.clear()
        message = containers.UpdateContainerRequest(
            container=containers.Container(id="c1", labels={"b": "2"}, image="ignored"),
            update_mask=protobuf.FieldMask(paths=["labels.a", "labels.b"]),
        )
        updated = (await service.update(message)).container
        assert updated is not None
        assert (updated.labels, updated.image) == ({"b": "2"}, "i")
        event = events.ContainerUpdate(id="c1", image="i", labels={"b": "2"}, snapshot_key="k")
        assert bus.published == [published("ns", "/containers/update", event)]

    async def test_update_without_a_mask(self, service: Containers) -> None:
        await self.create(service, image="i", labels={"a": "1"})
        for mask in (None, protobuf.FieldMask()):
            message = containers.UpdateContainerRequest(
                container=container(image="j"), update_mask=mask
            )
            updated = (await service.update(message)).container
            assert updated is not None
            assert (updated.labels, updated.image) == ({}, "j")

    async def test_delete(self, service: Containers, bus: Recorder) -> None:
        await self.create(service)
        bus.published.clear()
        await service.delete(containers.DeleteContainerRequest(id="c1"))
        event = events.ContainerDelete(id="c1")
        assert bus.published == [published("ns", "/containers/delete", event)]
        with pytest.raises(NotFound, match=r'^container "c1" in namespace "ns": not found$'):
            await service.get(containers.GetContainerRequest(id="c1"))

    async def test_lists(self, service: Containers) -> None:
        created = [await self.create(service, id=name) for name in ("a", "b", "c")]
        everything = await service.list(containers.ListContainersRequest())
        assert everything.containers == created
        message = containers.ListContainersRequest(filters=["id==a", "id==c"])
        wanted = [created[0], created[2]]
        assert (await service.list(message)).containers == wanted
        assert [each.container async for each in service.list_stream(message)] == wanted
        message = containers.ListContainersRequest(filters=["id=="])
        with pytest.raises(InvalidArgument):
            await service.list(message)
        with pytest.raises(InvalidArgument):
            await anext(service.list_stream(message))

    async def test_what_fails_is_not_published(self, service: Containers, bus: Recorder) -> None:
        with pytest.raises(InvalidArgument, match=r"container\.ID: identifier must not be empty"):
            await service.create(containers.CreateContainerRequest())
        with pytest.raises(InvalidArgument, match=r"^Container\.ID required$"):
            await service.update(containers.UpdateContainerRequest())
        with pytest.raises(NotFound):
            await service.delete(containers.DeleteContainerRequest(id="c1"))
        assert bus.published == []

    async def test_a_namespace_is_required(self, service: Containers) -> None:
        with calling(None):
            with pytest.raises(FailedPrecondition, match=r"^namespace is required"):
                await service.get(containers.GetContainerRequest(id="c1"))
            with pytest.raises(FailedPrecondition):
                await self.create(service)


class TestNamespaces:
    @pytest.fixture
    def service(self, database: Database, bus: Recorder) -> Namespaces:
        return Namespaces(NamespaceStore(database), bus)

    async def create(self, service: Namespaces, name: str, **labels: str) -> None:
        namespace = namespaces.Namespace(name=name, labels=labels)
        response = await service.create(namespaces.CreateNamespaceRequest(namespace=namespace))
        assert response.namespace == namespace

    async def names(self, service: Namespaces) -> list[str]:
        response = await service.list(namespaces.ListNamespacesRequest(filter="ignored"))
        return [each.name for each in response.namespaces]

    async def test_create_get_and_list(self, service: Namespaces, bus: Recorder) -> None:
        await self.create(service, "two", a="1", e="")
        await self.create(service, "one")
        got = await service.get(namespaces.GetNamespaceRequest(name="two"))
        assert got.namespace == namespaces.Namespace(name="two", labels={"a": "1"})
        assert await self.names(service) == ["one", "two"]
        event = events.NamespaceCreate(name="two", labels={"a": "1", "e": ""})
        assert bus.published[0] == published("two", "/namespaces/create", event)

    async def test_one_that_does_not_exist_is_given(self, service: Namespaces) -> None:
        got = await service.get(namespaces.GetNamespaceRequest(name="nope"))
        assert got.namespace == namespaces.Namespace(name="nope")

    async def test_update(self, service: Namespaces, bus: Recorder) -> None:
        await self.create(service, "one", a="1")
        bus.published.clear()
        labels = {"b": "2", "c": "3"}
        message = namespaces.UpdateNamespaceRequest(
            namespace=namespaces.Namespace(name="one", labels=labels),
            update_mask=protobuf.FieldMask(paths=["labels.b"]),
        )
        response = await service.update(message)
        assert response.namespace == namespaces.Namespace()
        got = await service.get(namespaces.GetNamespaceRequest(name="one"))
        assert got.namespace == namespaces.Namespace(name="one", labels={"a": "1", "b": "2"})
        event = events.NamespaceUpdate(name="one", labels=labels)
        assert bus.published == [published("one", "/namespaces/update", event)]

    async def test_delete(self, service: Namespaces, bus: Recorder) -> None:
        await self.create(service, "one")
        bus.published.clear()
        await service.delete(namespaces.DeleteNamespaceRequest(name="one"))
        assert await self.names(service) == []
        event = events.NamespaceDelete(name="one")
        assert bus.published == [published("one", "/namespaces/delete", event)]

    async def test_calls_need_no_namespace(self, service: Namespaces, bus: Recorder) -> None:
        with calling(None):
            await self.create(service, "one")
            await service.delete(namespaces.DeleteNamespaceRequest(name="one"))
        assert [namespace for namespace, _, _ in bus.published] == ["one", "one"]

    async def test_what_fails_is_not_published(self, service: Namespaces, bus: Recorder) -> None:
        with pytest.raises(InvalidArgument):
            await service.create(namespaces.CreateNamespaceRequest())
        with pytest.raises(NotFound):
            await service.delete(namespaces.DeleteNamespaceRequest(name="one"))
        assert bus.published == []


class TestLeases:
    @pytest.fixture
    def store(self, database: Database) -> LeaseStore:
        return LeaseStore(database)

    @pytest.fixture
    def service(self, store: LeaseStore, database: Database, tmp_path: Path) -> Leases:
        collector = Collector(database, ContentStore(database, tmp_path / "content"))

        async def collect() -> None:
            await collector.collect()

        return Leases(store, collect)

    async def ids(self, service: Leases, *filters: str) -> list[str]:
        response = await service.list(leases.ListRequest(filters=list(filters)))
        return [each.id for each in response.leases]

    async def test_create_list_delete(self, service: Leases) -> None:
        before = time.time_ns()
        created = await service.create(leases.CreateRequest(id="l1", labels={"a": "1"}))
        assert created.lease is not None
        assert before <= nanoseconds(created.lease.created_at) <= time.time_ns()
        assert (await service.list(leases.ListRequest())).leases == [created.lease]
        await service.create(leases.CreateRequest(id="l2"))
        assert await self.ids(service, "labels.a==1") == ["l1"]
        await service.delete(leases.DeleteRequest(id="l1"))
        assert await self.ids(service) == ["l2"]

    async def test_makes_up_an_id(self, service: Leases) -> None:
        created = await service.create(leases.CreateRequest())
        assert created.lease is not None
        assert re.fullmatch(r"\d{1,9}-[\w-]{4}", created.lease.id)

    async def test_resources(self, service: Leases) -> None:
        await service.create(leases.CreateRequest(id="l1"))
        resource = leases.Resource(id="k", type="snapshots/overlayfs")
        await service.add_resource(leases.AddResourceRequest(id="l1", resource=resource))
        message = leases.ListResourcesRequest(id="l1")
        assert (await service.list_resources(message)).resources == [resource]
        await service.delete_resource(leases.DeleteResourceRequest(id="l1", resource=resource))
        assert (await service.list_resources(message)).resources == []

    async def test_a_synchronous_deletion_removes_what_has_expired(self, service: Leases) -> None:
        expired = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}
        await service.create(leases.CreateRequest(id="old", labels=expired))
        for name in ("l1", "l2"):
            await service.create(leases.CreateRequest(id=name))
        await service.delete(leases.DeleteRequest(id="l1"))
        assert await self.ids(service) == ["l2", "old"]
        await service.delete(leases.DeleteRequest(id="l2", sync=True))
        assert await self.ids(service) == []

    async def test_a_namespace_is_required(self, service: Leases) -> None:
        with calling(None), pytest.raises(FailedPrecondition):
            await service.create(leases.CreateRequest())
