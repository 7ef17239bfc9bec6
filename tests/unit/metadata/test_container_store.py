from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.errors import AlreadyExists, InvalidArgument, NotFound, TaskdError, Unknown
from taskd.metadata import Container, ContainerStore, NamespaceStore
from taskd.types import TypedValue

SPEC = TypedValue("spec", b"\x00one")
SPEC_2 = TypedValue("spec", b"two")
FULL = Container(
    "c1",
    labels={"foo": "one", "bar": "two"},
    image="image",
    runtime_name="runtime",
    runtime_options=TypedValue("options", b"\xff"),
    spec=SPEC,
    snapshotter="overlayfs",
    snapshot_key="key",
    extensions={"a": TypedValue("ext.a", b"\x80"), "b": TypedValue("ext.b")},
    sandbox_id="sandbox",
)
PLAIN = Container("c1", runtime_name="runtime", spec=SPEC)


def untimed(container: Container) -> Container:
    return replace(container, created_at=0, updated_at=0)


async def test_create_and_get(containers: ContainerStore) -> None:
    before = time.time_ns()
    created = await containers.create("ns", replace(FULL, created_at=1, updated_at=2))
    assert before <= created.created_at == created.updated_at <= time.time_ns()
    assert untimed(created) == FULL
    assert containers.get("ns", "c1") == created


async def test_absent_is_not_the_same_as_empty(containers: ContainerStore) -> None:
    await containers.create("ns", replace(PLAIN, spec=TypedValue("")))
    stored = containers.get("ns", "c1")
    assert stored.spec == TypedValue("")
    assert stored.runtime_options is None


async def test_namespaces_are_separate(containers: ContainerStore) -> None:
    await containers.create("one", PLAIN)
    await containers.create("two", replace(PLAIN, image="other"))
    assert containers.get("two", "c1").image == "other"
    assert [each.image for each in await containers.list("one")] == [""]


async def test_creates_its_namespace(
    containers: ContainerStore, namespaces: NamespaceStore
) -> None:
    with pytest.raises(InvalidArgument):
        await containers.create("ns", replace(PLAIN, spec=None))
    assert not namespaces.list()
    await containers.create("ns", PLAIN)
    assert [each.name for each in namespaces.list()] == ["ns"]


async def test_labels_without_a_value_are_dropped(containers: ContainerStore) -> None:
    created = await containers.create("ns", replace(PLAIN, labels={"a": "1", "e": ""}))
    assert created.labels == {"a": "1"}
    assert containers.get("ns", "c1") == created


VALIDATION = "create container failed validation"
IDENTIFIER = r"must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, f"{VALIDATION}: container.ID: identifier must not be empty"),
        ({"id": "a b"}, f'{VALIDATION}: container.ID: identifier "a b" {IDENTIFIER}'),
        ({"spec": None}, f"{VALIDATION}: container.Spec must be set"),
        ({"runtime_name": ""}, f"{VALIDATION}: container.Runtime.Name must be set"),
        (
            {"snapshot_key": "k"},
            f"{VALIDATION}: container.Snapshotter must be set if container.SnapshotKey is set",
        ),
        (
            {"extensions": {"": SPEC}},
            f"{VALIDATION}: container.Extension keys must not be zero-length",
        ),
        (
            {"labels": {"k" * 20: "v" * 4077}},
            f"{VALIDATION}: containers.Labels: "
            "label key and value greater than maximum size (4096 bytes), key: kkkkkkkkkk",
        ),
    ],
)
async def test_validates(containers: ContainerStore, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await containers.create("ns", replace(PLAIN, **changes))
    assert caught.value.message == f"{message}: invalid argument"


async def test_label_size_is_in_bytes(containers: ContainerStore) -> None:
    await containers.create("ns", replace(PLAIN, labels={"kk": "é" * 2047}))
    with pytest.raises(InvalidArgument):
        await containers.create("ns", replace(PLAIN, id="c2", labels={"kkk": "é" * 2047}))


@pytest.mark.parametrize("known", [True, False])
async def test_errors(containers: ContainerStore, known: bool) -> None:
    def is_error(error: TaskdError, kind: type[TaskdError], text: str, other: str = "") -> None:
        assert type(error) is kind
        assert error.message == (text if known else other or text)

    if known:
        await containers.create("ns", PLAIN)
        with pytest.raises(TaskdError) as caught:
            await containers.create("ns", PLAIN)
        is_error(caught.value, AlreadyExists, 'container "c1": already exists')
    with pytest.raises(TaskdError) as caught:
        containers.get("ns", "x")
    is_error(caught.value, NotFound, 'container "x" in namespace "ns": not found')
    with pytest.raises(TaskdError) as caught:
        await containers.update("ns", replace(PLAIN, id="x"))
    is_error(
        caught.value,
        NotFound,
        'container "x": not found',
        'cannot update container "x" in namespace "ns": not found',
    )
    with pytest.raises(TaskdError) as caught:
        await containers.delete("ns", "x")
    is_error(
        caught.value,
        NotFound,
        "container x: not found",
        'cannot delete container "x" in namespace "ns": not found',
    )


async def test_a_label_without_a_key_is_an_unknown_error(containers: ContainerStore) -> None:
    with pytest.raises(Unknown) as caught:
        await containers.create("ns", replace(PLAIN, labels={"": "v"}))
    assert caught.value.message == (
        'failed to write container "c1": failed to set label ""="v": key required'
    )


async def test_delete(containers: ContainerStore) -> None:
    await containers.create("ns", PLAIN)
    await containers.delete("ns", "c1")
    with pytest.raises(NotFound):
        containers.get("ns", "c1")
    await containers.create("ns", PLAIN)


EXT = TypedValue("ext.z", b"z")


@pytest.mark.parametrize(
    ("given_", "paths", "changed"),
    [
        ({"spec": SPEC_2}, ["spec"], {"spec": SPEC_2}),
        ({"snapshot_key": "k2"}, ["snapshotkey"], {"snapshot_key": "k2"}),
        ({"image": "i2", "spec": SPEC_2}, ["image"], {"image": "i2"}),
        ({"labels": {"bar": "baz"}}, ["labels.bar"], {"labels": {"foo": "one", "bar": "baz"}}),
        ({"labels": {"a.b": "c"}}, ["labels.a.b"], {"labels": {**FULL.labels, "a.b": "c"}}),
        ({"labels": {"bar": ""}}, ["labels.bar"], {"labels": {"foo": "one"}}),
        ({}, ["labels.bar"], {"labels": {"foo": "one"}}),
        ({}, ["labels"], {"labels": {}}),
        (
            {"extensions": {"z": EXT, "a": EXT}},
            ["extensions.z"],
            {"extensions": {**FULL.extensions, "z": EXT}},
        ),
        (
            {},
            ["extensions.a"],
            {"extensions": {**FULL.extensions, "a": TypedValue("")}},
        ),
        ({"image": "i2", "labels": {"n": "1"}}, ["image", "labels"], None),
    ],
)
async def test_update_of_fields(
    containers: ContainerStore,
    given_: dict[str, Any],
    paths: list[str],
    changed: dict[str, Any] | None,
) -> None:
    created = await containers.create("ns", FULL)
    updated = await containers.update("ns", replace(Container("c1"), **given_), paths)
    assert untimed(updated) == replace(FULL, **(given_ if changed is None else changed))
    assert updated.created_at == created.created_at < updated.updated_at
    assert containers.get("ns", "c1") == updated


async def test_update_of_everything(containers: ContainerStore) -> None:
    await containers.create("ns", FULL)
    wanted = replace(
        FULL, labels={"n": "1"}, image="i2", spec=SPEC_2, snapshot_key="k2", extensions={"z": EXT}
    )
    sent = replace(wanted, runtime_options=None, sandbox_id="other")
    assert untimed(await containers.update("ns", sent)) == wanted


async def test_extensions_left_out_stay_in_the_store(containers: ContainerStore) -> None:
    await containers.create("ns", FULL)
    sent = replace(PLAIN, extensions={"z": EXT})
    updated = await containers.update("ns", sent, ["extensions"])
    assert updated.extensions == {"z": EXT}
    assert containers.get("ns", "c1").extensions == {**FULL.extensions, "z": EXT}


@pytest.mark.parametrize(
    ("changes", "paths", "message"),
    [
        ({"id": ""}, [], "must specify a container id"),
        ({"snapshotter": "x"}, [], "container.Snapshotter field is immutable"),
        ({"runtime_name": "x"}, [], "container.Runtime.Name field is immutable"),
        ({}, ["id"], 'cannot update "id" field on "c1"'),
        ({}, ["runtime"], 'cannot update "runtime" field on "c1"'),
        ({}, ["snapshotkey", "snapshotter"], 'cannot update "snapshotter" field on "c1"'),
        ({}, ["spec.x"], 'cannot update "spec.x" field on "c1"'),
        ({"spec": None}, ["spec"], "update failed validation: container.Spec must be set"),
        (
            {},
            ["extensions."],
            "update failed validation: container.Extension keys must not be zero-length",
        ),
    ],
)
async def test_refused_updates(
    containers: ContainerStore, changes: dict[str, Any], paths: list[str], message: str
) -> None:
    created = await containers.create("ns", FULL)
    with pytest.raises(InvalidArgument) as caught:
        await containers.update("ns", replace(FULL, **changes), ["image", *paths] if paths else [])
    assert caught.value.message == f"{message}: invalid argument"
    assert containers.get("ns", "c1") == created


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["C", "a", "b"]),
        (["id==a"], ["a"]),
        (["id==a", "id==b"], ["a", "b"]),
        (["runtime.name==r2"], ["b"]),
        (["runtime"], []),
        (["image"], ["a"]),
        (['labels."x.y"==1'], ["a"]),
        (["labels.x.y==1"], ["a"]),
        (["labels.x"], []),
        (["snapshotter==overlayfs"], []),
        (["image~=("], []),
    ],
)
async def test_list(containers: ContainerStore, filters: list[str], expected: list[str]) -> None:
    await containers.create("ns", replace(PLAIN, id="b", runtime_name="r2"))
    await containers.create("ns", replace(PLAIN, id="a", image="i", labels={"x.y": "1"}))
    await containers.create("ns", replace(PLAIN, id="C", snapshotter="overlayfs"))
    assert [each.id for each in await containers.list("ns", filters)] == expected


async def test_list_names_the_kind_of_a_filters_error_twice(containers: ContainerStore) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await containers.list("ns", ["id=="])
    assert caught.value.message == (
        "filters: parse error: [id==]: expected value or quoted: invalid argument: invalid argument"
    )


TEXT = st.text(max_size=20)
VALUES = st.builds(TypedValue, TEXT, st.binary(max_size=50))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    labels=st.dictionaries(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20)),
    image=TEXT,
    options=st.none() | VALUES,
    spec=VALUES,
    extensions=st.dictionaries(st.text(min_size=1, max_size=20), VALUES),
)
async def test_gives_back_what_it_was_given(
    containers: ContainerStore,
    labels: dict[str, str],
    image: str,
    options: TypedValue | None,
    spec: TypedValue,
    extensions: dict[str, TypedValue],
) -> None:
    container = Container("x", labels, image, "r", options, spec, extensions=extensions)
    created = await containers.create("ns", container)
    assert untimed(created) == container
    assert containers.get("ns", "x") == created
    await containers.delete("ns", "x")
