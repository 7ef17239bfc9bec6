"""The images service: names for targets."""

from __future__ import annotations

from typing import Any

from parity.recorder import Recorder
from parity.scenarios import scenario

from taskd.proto.containerd import types
from taskd.proto.containerd.services.images import v1 as images
from taskd.proto.google.protobuf import FieldMask, Timestamp

MISSING = "sha256:" + "2" * 64
BAD_DIGESTS = ("", "foo", "sha256:", ":x", "sha256:abc", "md5:" + "a" * 32, "sha256:" + "A" * 64)
LONG = "x" * 4096


def target(**fields: Any) -> Any:
    defaults = {"media_type": "application/x", "digest": MISSING, "size": 7}
    return types.Descriptor(**{**defaults, **fields})  # type: ignore[call-arg]


def image(name: str = "i", **fields: Any) -> images.Image:
    return images.Image(**{"name": name, "target": target(), **fields})


@scenario(alone=True)
async def create_nothing(r: Recorder) -> None:
    await r.images.create()


@scenario(alone=True)
async def update_nothing(r: Recorder) -> None:
    await r.images.update()


@scenario(alone=True)
async def create_without_a_target(r: Recorder) -> None:
    await r.images.create(image=images.Image(name="x"))


@scenario(alone=True)
async def update_without_a_target(r: Recorder) -> None:
    await r.images.update(image=images.Image(name="x"))


@scenario(alone=True)
async def records(r: Recorder) -> None:
    async def create(each: images.Image | None) -> None:
        await r.images.create(image=each)

    async def update(each: images.Image | None, *paths: str) -> None:
        mask = FieldMask(paths=list(paths)) if paths else None
        message = images.UpdateImageRequest(image=each, update_mask=mask)
        await r.images.update(message)

    async def get(name: str) -> None:
        await r.images.get(name=name)

    await get("i")
    await get("")
    annotations = {"k": "v", "none": ""}
    created = Timestamp(seconds=5)
    await create(
        image(
            labels={"a": "1", "b": ""},
            target=target(annotations=annotations),
            created_at=created,
            updated_at=created,
        )
    )
    await get("i")
    for bad in (
        image(),
        *(image("x", target=target(digest=digest)) for digest in BAD_DIGESTS),
        image("x", target=target(size=0)),
        image("x", target=target(size=-1)),
        image("x", target=target(media_type="")),
        image("x", labels={"": "1"}),
        image("x", target=target(annotations={"": "1"})),
    ):
        await create(bad)
        await update(bad)
    await create(image("docker.io/library/a b:c@d"))
    await create(
        image("other", labels={"a": "2", "x.y": "z"}, target=target(annotations={"l": LONG}))
    )
    for filters in (
        [],
        ["name==i"],
        ["name~=^o", "name==i"],
        [f"target.digest=={MISSING}"],
        ["target.mediatype==application/x,labels.a==2"],
        ["target.size==7"],
        ["target"],
        ['labels."x.y"'],
        ["annotations.k==v"],
        ["size"],
        ["name=="],
    ):
        await r.images.list(filters=filters)
    new = target(digest="sha512:" + "1" * 128, size=8, media_type="m", annotations={"n": "1"})
    changed = image(labels={"c": "3", "e": ""}, target=new)
    await update(image("missing"))
    await update(image("missing"), "bad")
    await update(changed, "labels.c", "labels.a")
    await update(changed, "annotations.n", "annotations.k")
    await update(changed, "labels")
    await update(changed, "annotations")
    await update(changed, "target")
    await update(changed, "name")
    await update(changed, "target.digest")
    await update(changed, "labels", "created_at")
    await update(image(target=target(size=0)), "labels")
    await update(image(target=target(size=0)), "target")
    await update(changed)
    await update(image())
    await get("i")
    for name in ("i", "i", ""):
        await r.images.delete(name=name)
    await r.images.delete(name="other", sync=True)
    await r.images.list()
