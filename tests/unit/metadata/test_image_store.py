from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from taskd.metadata import Database, Descriptor, Image, ImageStore, NamespaceStore
from taskd.metadata.database import _MIGRATIONS

DIGEST = "sha256:" + "2" * 64
OTHER = "sha512:" + "1" * 128
TARGET = Descriptor("application/x", DIGEST, 7, {"k": "v"})
IMAGE = Image("docker.io/library/a:b", {"a": "1"}, TARGET)


@pytest.fixture
def images(database: Database) -> ImageStore:
    return ImageStore(database)


async def test_create_get_delete(images: ImageStore, namespaces: NamespaceStore) -> None:
    before = time.time_ns()
    created = await images.create(
        "ns",
        replace(
            IMAGE,
            labels={"a": "1", "e": ""},
            target=replace(TARGET, annotations={"k": "v", "e": ""}),
            created_at=5,
            updated_at=6,
        ),
    )
    assert before <= created.created_at == created.updated_at <= time.time_ns()
    at = created.created_at
    assert created == replace(IMAGE, created_at=at, updated_at=at)
    assert images.get("ns", IMAGE.name) == created
    assert [each.name for each in namespaces.list()] == ["ns"]
    await images.delete("ns", IMAGE.name)
    for namespace in ("ns", "other"):
        with pytest.raises(NotFound, match=rf'^image "{IMAGE.name}": not found$'):
            images.get(namespace, IMAGE.name)
        with pytest.raises(NotFound, match=rf'^image "{IMAGE.name}": not found$'):
            await images.delete(namespace, IMAGE.name)


async def test_a_database_from_before_there_were_images(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    connection = sqlite3.connect(path)
    connection.executescript(f"{_MIGRATIONS[0]}; PRAGMA user_version = 1")
    connection.execute("INSERT INTO namespaces (name) VALUES ('old')")
    connection.commit()
    connection.close()
    with Database(path) as database:
        await ImageStore(database).create("old", IMAGE)
        assert [each.name for each in NamespaceStore(database).list()] == ["old"]


async def test_namespaces_have_their_own(images: ImageStore) -> None:
    await images.create("one", IMAGE)
    await images.create("two", replace(IMAGE, labels={}))
    assert images.get("one", IMAGE.name).labels == {"a": "1"}
    assert images.get("two", IMAGE.name).labels == {}


async def test_names_are_unique(images: ImageStore) -> None:
    await images.create("ns", IMAGE)
    with pytest.raises(AlreadyExists, match=rf'^image "{IMAGE.name}": already exists$'):
        await images.create("ns", IMAGE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (replace(IMAGE, name=""), "image name must not be empty"),
        (
            replace(IMAGE, labels={"l": "x" * 4096}, target=Descriptor()),
            "image.Labels: label key and value greater than maximum size (4096 bytes), key: l",
        ),
        (
            replace(IMAGE, target=Descriptor()),
            'Target.Digest "" invalid: invalid checksum digest format',
        ),
        (
            replace(IMAGE, target=replace(TARGET, digest="sha256:abc")),
            'Target.Digest "sha256:abc" invalid: invalid checksum digest length',
        ),
        (
            replace(IMAGE, target=replace(TARGET, size=0)),
            "Target.Size must be greater than zero",
        ),
        (replace(IMAGE, target=replace(TARGET, media_type="")), "Target.MediaType must be set"),
    ],
)
async def test_bad_images(images: ImageStore, image: Image, message: str) -> None:
    await images.create("ns", IMAGE)
    with pytest.raises(InvalidArgument) as caught:
        await images.create("ns", image)
    assert caught.value.message == f"{message}: invalid argument"
    if image.name:
        with pytest.raises(InvalidArgument) as caught:
            await images.update("ns", image)
        assert caught.value.message == f"{message}: invalid argument"


async def test_labels_without_a_key(images: ImageStore) -> None:
    with pytest.raises(Unknown, match=r'^writing labels for image \S+: failed to set label ""="v"'):
        await images.create("ns", replace(IMAGE, labels={"": "v"}))
    target = replace(TARGET, annotations={"": "v"})
    with pytest.raises(Unknown, match=r"^writing Annotations for image \S+: failed to set"):
        await images.create("ns", replace(IMAGE, target=target))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], Image(IMAGE.name, {"b": "2"}, Descriptor("m", OTHER, 8, {"n": "1"}))),
        (["labels"], replace(IMAGE, labels={"b": "2"})),
        (["labels.b"], replace(IMAGE, labels={"a": "1", "b": "2"})),
        (["labels.a", "labels.b"], replace(IMAGE, labels={"b": "2"})),
        (["target"], replace(IMAGE, target=Descriptor("m", OTHER, 8, {"n": "1"}))),
        (["annotations"], replace(IMAGE, target=replace(TARGET, annotations={"n": "1"}))),
        (
            ["annotations.n"],
            replace(IMAGE, target=replace(TARGET, annotations={"k": "v", "n": "1"})),
        ),
        (["annotations.k"], replace(IMAGE, target=replace(TARGET, annotations={}))),
    ],
)
async def test_update(images: ImageStore, paths: list[str], expected: Image) -> None:
    created = await images.create("ns", IMAGE)
    change = Image(IMAGE.name, {"b": "2", "e": ""}, Descriptor("m", OTHER, 8, {"n": "1"}))
    updated = await images.update("ns", change, paths)
    assert updated.updated_at > created.updated_at
    times = {"created_at": created.created_at, "updated_at": updated.updated_at}
    assert updated == replace(expected, **times)  # type: ignore[arg-type]
    assert images.get("ns", IMAGE.name) == updated


async def test_update_errors(images: ImageStore) -> None:
    with pytest.raises(InvalidArgument, match=r"^image name is required for update: "):
        await images.update("ns", Image(""))
    with pytest.raises(NotFound, match=rf'^image "{IMAGE.name}": not found$'):
        await images.update("ns", IMAGE, ["bad"])
    created = await images.create("ns", IMAGE)
    for path in ("name", "target.digest", "created_at", ""):
        text = f'cannot update "{path}" field on image "{IMAGE.name}": invalid argument'
        with pytest.raises(InvalidArgument) as caught:
            await images.update("ns", replace(IMAGE, labels={}), ["labels", path])
        assert caught.value.message == text
    assert images.get("ns", IMAGE.name) == created


async def test_times_can_be_given(images: ImageStore) -> None:
    created = await images.create("ns", IMAGE, now=5)
    assert (created.created_at, created.updated_at) == (5, 5)
    updated = await images.update("ns", IMAGE, now=7)
    assert (updated.created_at, updated.updated_at) == (5, 7)


async def test_delete_only_what_is_meant(images: ImageStore) -> None:
    await images.create("ns", IMAGE)
    with pytest.raises(NotFound) as caught:
        await images.delete("ns", IMAGE.name, OTHER)
    text = f'image "{IMAGE.name}" has target {DIGEST}, not {OTHER}: not found'
    assert caught.value.message == text
    await images.delete("ns", IMAGE.name, DIGEST)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["a", "b"]),
        (["name==a"], ["a"]),
        (["name~=/.*/"], ["a", "b"]),
        ([f"target.digest=={OTHER}"], ["b"]),
        (["target.mediatype==application/x,labels.l==1"], ["a"]),
        (["labels.l==2", "name==a"], ["a", "b"]),
        (["annotations.k"], ["a"]),
        (["target"], []),
        (["target.size==7"], []),
        (["created"], []),
    ],
)
async def test_list(images: ImageStore, filters: list[str], expected: list[str]) -> None:
    await images.create("ns", Image("b", {"l": "2"}, Descriptor("application/x", OTHER, 7)))
    await images.create("ns", Image("a", {"l": "1"}, TARGET))
    await images.create("other", IMAGE)
    assert [each.name for each in await images.list("ns", filters)] == expected


async def test_list_refuses_bad_filters(images: ImageStore) -> None:
    with pytest.raises(InvalidArgument, match=r": invalid argument: invalid argument$"):
        await images.list("ns", ["name=="])


async def test_namespaces_with_images_stay(images: ImageStore, namespaces: NamespaceStore) -> None:
    await images.create("ns", IMAGE)
    with pytest.raises(FailedPrecondition, match=r"but it still has images: failed precondition$"):
        await namespaces.delete("ns")
    await images.delete("ns", IMAGE.name)
    await namespaces.delete("ns")
