from __future__ import annotations

import logging
import time

import pytest

from taskd.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented, Unknown
from taskd.metadata import Database, LeaseStore, NamespaceStore, Resource
from taskd.metadata.leases import EXPIRE_LABEL, expired

DIGEST = "sha256:" + "2" * 64
SECOND = 10**9


async def test_create_list_delete(leases: LeaseStore, namespaces: NamespaceStore) -> None:
    before = time.time_ns()
    created = await leases.create("ns", "l1", {"a": "1", "e": ""})
    assert (created.id, created.labels) == ("l1", {"a": "1"})
    assert before <= created.created_at <= time.time_ns()
    assert await leases.list("ns") == [created]
    assert await leases.list("other") == []
    assert [each.name for each in namespaces.list()] == ["ns"]
    await leases.delete("ns", "l1")
    assert await leases.list("ns") == []


async def test_an_id_need_be_no_identifier(leases: LeaseStore) -> None:
    assert (await leases.create("ns", "a b/c", {})).id == "a b/c"
    with pytest.raises(Unknown, match=r"^lease id must be provided$"):
        await leases.create("ns", "", {})


async def test_errors(leases: LeaseStore) -> None:
    await leases.create("ns", "l1", {})
    with pytest.raises(AlreadyExists, match=r'^lease "l1": already exists$'):
        await leases.create("ns", "l1", {})
    with pytest.raises(Unknown, match=r'^failed to set label ""="v": key required$'):
        await leases.create("ns", "l2", {"": "v"})
    missing = r'^lease "no": not found$'
    with pytest.raises(NotFound, match=missing):
        await leases.delete("ns", "no")
    with pytest.raises(NotFound, match=missing):
        await leases.add_resource("ns", "no", Resource("x", "bad"))
    with pytest.raises(NotFound, match=missing):
        await leases.delete_resource("ns", "no", Resource("x", "bad"))
    with pytest.raises(NotFound, match=missing):
        await leases.list_resources("ns", "no")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["lease1", "lease2", "lease3"]),
        (["id==lease1"], ["lease1"]),
        (["id==lease1", "id==lease2"], ["lease1", "lease2"]),
        (["labels.label1"], ["lease1", "lease2", "lease3"]),
        (["labels.label1==value1"], ["lease1", "lease2"]),
        (["labels.label1==value2"], ["lease3"]),
        (["labels.label2"], ["lease3"]),
        (["labels.label2", "labels.label3"], ["lease1", "lease2", "lease3"]),
        (["nothing"], []),
    ],
)
async def test_list(leases: LeaseStore, filters: list[str], expected: list[str]) -> None:
    await leases.create("ns", "lease1", {"label1": "value1", "label3": "other"})
    await leases.create("ns", "lease2", {"label1": "value1", "label2": "", "label3": "other"})
    await leases.create("ns", "lease3", {"label1": "value2", "label2": "something"})
    assert [each.id for each in await leases.list("ns", filters)] == expected


async def test_list_refuses_bad_filters(leases: LeaseStore) -> None:
    with pytest.raises(InvalidArgument, match=r": invalid argument: invalid argument$"):
        await leases.list("ns", ["labels."])


async def test_resources(leases: LeaseStore) -> None:
    await leases.create("ns", "l1", {})
    assert await leases.list_resources("ns", "l1") == []
    resources = [
        Resource(DIGEST, "content"),
        Resource("ref", "ingests"),
        Resource("a", "snapshots/overlayfs"),
        Resource("b", "snapshots/overlayfs"),
    ]
    for resource in [*reversed(resources), resources[1]]:
        await leases.add_resource("ns", "l1", resource)
    assert await leases.list_resources("ns", "l1") == resources
    await leases.delete_resource("ns", "l1", resources[0])
    await leases.delete_resource("ns", "l1", resources[0])
    assert await leases.list_resources("ns", "l1") == resources[1:]
    await leases.delete("ns", "l1")
    await leases.create("ns", "l1", {})
    assert await leases.list_resources("ns", "l1") == []


@pytest.mark.parametrize(
    ("resource", "error", "message"),
    [
        (Resource("x", "content/y"), InvalidArgument, "invalid resource type content/y"),
        (Resource("x", "ingests/y"), InvalidArgument, "invalid resource type ingests/y"),
        (Resource("x", "snapshots"), InvalidArgument, "invalid snapshot resource type snapshots"),
        (
            Resource("x", "snapshots/a/b"),
            InvalidArgument,
            "invalid snapshot resource type snapshots/a/b",
        ),
        (Resource("x", "leases"), Unimplemented, "resource type leases not supported yet"),
        (Resource("x", "images"), Unimplemented, "resource type images not supported yet"),
        (Resource("x", ""), Unimplemented, "resource type  not supported yet"),
    ],
)
async def test_bad_types(
    leases: LeaseStore, resource: Resource, error: type[Exception], message: str
) -> None:
    await leases.create("ns", "l1", {})
    for method in (leases.add_resource, leases.delete_resource):
        with pytest.raises(error, match=rf"^{message}: "):
            await method("ns", "l1", resource)


@pytest.mark.parametrize(
    ("digest", "problem"),
    [
        ("foo", "invalid checksum digest format"),
        (":x", "invalid checksum digest format"),
        ("sha256:", "invalid checksum digest format"),
        ("sha256:abc", "invalid checksum digest length"),
        ("sha256:" + "A" * 64, "invalid checksum digest format"),
        ("md5:" + "a" * 32, "unsupported digest algorithm"),
        ("md5!:" + "a" * 32, "invalid checksum digest format"),
    ],
)
async def test_bad_digests(leases: LeaseStore, digest: str, problem: str) -> None:
    await leases.create("ns", "l1", {})
    with pytest.raises(InvalidArgument) as caught:
        await leases.add_resource("ns", "l1", Resource(digest, "content"))
    assert caught.value.message == (
        f"invalid content resource id {digest}: {problem}: invalid argument"
    )


async def test_longer_digests(leases: LeaseStore) -> None:
    await leases.create("ns", "l1", {})
    for digest in ("sha384:" + "a" * 96, "sha512:" + "0" * 128):
        await leases.add_resource("ns", "l1", Resource(digest, "content"))


async def test_empty_names(leases: LeaseStore) -> None:
    await leases.create("ns", "l1", {})
    with pytest.raises(Unknown, match=r"^bucket name required$"):
        await leases.add_resource("ns", "l1", Resource("x", "snapshots/"))
    for kind in ("ingests", "snapshots/o"):
        with pytest.raises(Unknown, match=r"^key required$"):
            await leases.add_resource("ns", "l1", Resource("", kind))
        await leases.delete_resource("ns", "l1", Resource("", kind))


async def test_expired(leases: LeaseStore, database: Database) -> None:
    async def create(namespace: str, lease: str, expires: str) -> None:
        await leases.create(namespace, lease, {EXPIRE_LABEL: expires})

    await create("a", "gone", "2020-01-01T00:00:10Z")
    await create("b", "gone", "2020-01-01T02:00:10.5+02:00")
    await create("b", "stays", "2020-01-01T02:00:10+01:00")
    await leases.create("b", "never", {})
    now = 1577836811 * SECOND  # 2020-01-01T00:00:11Z
    assert expired(database.read, now - SECOND) == []
    assert expired(database.read, now) == [("a", "gone"), ("b", "gone")]


@pytest.mark.parametrize(
    "value",
    ["yesterday", "2020-01-01", "20200101T000000Z", "2020-01-01T00:00:00", "2020-13-01T00:00:00Z"],
)
async def test_a_lease_whose_expiry_cannot_be_read_stays(
    leases: LeaseStore, database: Database, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    await leases.create("ns", "l1", {EXPIRE_LABEL: value})
    with caplog.at_level(logging.INFO):
        assert expired(database.read, time.time_ns()) == []
    assert f'ignoring invalid expiration value "{value}"' in caplog.text
