from __future__ import annotations

import pytest

from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unknown,
)
from taskd.metadata import Container, ContainerStore, LeaseStore, Namespace, NamespaceStore
from taskd.types import TypedValue


async def test_create_and_list(namespaces: NamespaceStore) -> None:
    created = await namespaces.create("b", {"a": "1", "e": ""})
    assert created == Namespace("b", {"a": "1"})
    await namespaces.create("a", {})
    await namespaces.create("C", {})
    assert namespaces.list() == [Namespace("C", {}), Namespace("a", {}), created]
    assert namespaces.labels("b") == {"a": "1"}


async def test_one_that_does_not_exist_has_no_labels(namespaces: NamespaceStore) -> None:
    assert namespaces.labels("nope") == {}


async def test_create_refuses(namespaces: NamespaceStore) -> None:
    await namespaces.create("a", {})
    with pytest.raises(AlreadyExists, match=r'^namespace "a": already exists$'):
        await namespaces.create("a", {})
    with pytest.raises(InvalidArgument, match=r'^identifier "a b" must match'):
        await namespaces.create("a b", {})
    with pytest.raises(InvalidArgument) as caught:
        await namespaces.create("b", {"k": "v" * 4096})
    assert caught.value.message == (
        "namespace.Labels: label key and value greater than maximum size (4096 bytes), "
        "key: k: invalid argument"
    )
    with pytest.raises(Unknown, match=r"^key required$"):
        await namespaces.create("b", {"": "v"})
    assert len(namespaces.list()) == 1


@pytest.mark.parametrize(
    ("labels", "paths", "expected"),
    [
        ({"n": "9", "e": ""}, [], {"n": "9"}),
        ({}, [], {}),
        ({"b": "2", "c": "3"}, ["labels.b"], {"a": "1", "x.y": "z", "b": "2"}),
        ({}, ["labels.a"], {"x.y": "z"}),
        ({"x.y": ""}, ["labels.x.y"], {"a": "1"}),
    ],
)
async def test_update(
    namespaces: NamespaceStore, labels: dict[str, str], paths: list[str], expected: dict[str, str]
) -> None:
    await namespaces.create("ns", {"a": "1", "x.y": "z"})
    await namespaces.update("ns", labels, paths)
    assert namespaces.labels("ns") == expected


async def test_update_creates_where_there_is_a_label_to_keep(namespaces: NamespaceStore) -> None:
    await namespaces.update("none", {})
    await namespaces.update("none", {"a": ""}, ["labels.a"])
    assert not namespaces.list()
    await namespaces.update("one", {"a": "1"}, ["labels.a"])
    assert namespaces.list() == [Namespace("one", {"a": "1"})]


@pytest.mark.parametrize("path", ["name", "labels"])
async def test_update_refuses_other_fields(namespaces: NamespaceStore, path: str) -> None:
    await namespaces.create("ns", {"a": "1"})
    with pytest.raises(InvalidArgument, match=rf'^cannot update "{path}" field$'):
        await namespaces.update("ns", {"b": "2"}, ["labels.b", path])
    assert namespaces.labels("ns") == {"a": "1"}


async def test_update_refuses_bad_labels_and_names(namespaces: NamespaceStore) -> None:
    with pytest.raises(Unknown, match=r"^namespace.Labels: label key and value greater than"):
        await namespaces.update("ns", {"k": "v" * 4096}, ["labels.k"])
    with pytest.raises(Unknown, match=r"^key required$"):
        await namespaces.update("ns", {"": "v"}, ["labels."])
    with pytest.raises(InvalidArgument):
        await namespaces.update("../x", {"k": "v"})
    assert not namespaces.list()


async def test_delete(
    namespaces: NamespaceStore, containers: ContainerStore, leases: LeaseStore
) -> None:
    with pytest.raises(NotFound, match=r'^namespace "ns": not found$'):
        await namespaces.delete("ns")
    await containers.create("ns", Container("c", runtime_name="r", spec=TypedValue("s")))
    await leases.create("ns", "lease", {})
    with pytest.raises(FailedPrecondition) as caught:
        await namespaces.delete("ns")
    assert caught.value.message == (
        'namespace "ns" must be empty, but it still has containers: failed precondition'
    )
    await containers.delete("ns", "c")
    await namespaces.delete("ns")
    assert not namespaces.list()
    assert not await leases.list("ns")
