"""The content service: blobs, unfinished writes, leases, and what namespaces share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from parity.recorder import Recorder
from parity.scenarios import scenario
from parity.scenarios.images import BAD_DIGESTS, LONG, MISSING, image

from taskd import digests
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.google.protobuf import FieldMask

STAT, WRITE, COMMIT = content.WriteAction

HELLO = b"hello, world\n"
OTHER = b"other"
BIG = bytes(range(256)) * (5 << 12)  # 5 MiB


async def write(
    r: Recorder, ref: str, *messages: content.WriteContentRequest, lease: str = ""
) -> None:
    """One call of Write that sends these messages, the first of which has the ref."""
    messages[0].ref = ref
    await r.content.write(messages, metadata={"containerd-lease": lease} if lease else None)


async def update(r: Recorder, digest: str, labels: dict[str, str], *paths: str) -> None:
    info = content.Info(digest=digest, size=7, labels=labels)
    mask = FieldMask(paths=list(paths)) if paths else None
    await r.content.update(info=info, update_mask=mask)


async def read(r: Recorder, digest: str, offset: int = 0, size: int = 0) -> None:
    await r.content.read(digest=digest, offset=offset, size=size)


def request(action: content.WriteAction, data: bytes = b"", **fields: Any) -> Any:
    return content.WriteContentRequest(action=action, data=data, **fields)


@scenario(alone=True)
async def writes(r: Recorder) -> None:
    size, digest = len(HELLO), digests.of(HELLO)
    await r.content.write([])
    await write(r, "", request(STAT))
    await write(r, "a", request(STAT), request(WRITE, HELLO), request(COMMIT, offset=size))
    await write(r, "a", request(COMMIT, HELLO))
    await write(r, "a", request(STAT, expected=digest))
    await write(r, "a", request(STAT), request(COMMIT, HELLO, expected=digest))
    await r.content.status(ref="a")
    pieces = [
        request(WRITE, BIG[at : at + (1 << 20)], offset=at) for at in range(0, 5 << 20, 1 << 20)
    ]
    end = request(COMMIT, offset=len(BIG), total=len(BIG), expected=digests.of(BIG))
    await write(r, "big", request(STAT, total=len(BIG)), *pieces, end)
    await write(r, "e", request(COMMIT))
    await write(r, "e", request(COMMIT))
    # What is not as expected can be written on, or anew.
    await write(r, "s", request(COMMIT, OTHER, total=6))
    await r.content.status(ref="s")
    await write(r, "s", request(STAT), request(COMMIT, b"!", offset=5, expected=MISSING))
    await write(r, "s", request(STAT), request(COMMIT, b"!", offset=5))
    await write(r, "s", request(STAT), request(COMMIT, b"!", offset=7))
    await write(r, "s", request(STAT), request(WRITE, b"?", offset=-1), request(STAT))
    await write(r, "s", request(STAT, total=6), request(WRITE, b"anew"), request(STAT))
    await write(r, "s", request(COMMIT, offset=4, total=-4))
    await write(r, "s", request(COMMIT, offset=4, expected="../../x"))
    await write(r, "s", request(COMMIT, offset=4, expected="sha512:" + "1" * 128))
    await write(r, "s", request(COMMIT, offset=4, labels={"a": LONG}))
    await write(r, "s", request(COMMIT, offset=4, labels={"a": "1", "b": ""}))
    await r.content.info(digest=digests.of(b"anew"))
    for bad in ("../x", "sha256:../x"):
        await write(r, "t", request(WRITE, b"?", expected=bad))
    await write(r, "../../up", request(STAT), request(WRITE, OTHER))
    await r.content.list_statuses(filters=[])
    await r.content.list_statuses(filters=["ref==t"])
    await r.content.list_statuses(filters=["ref~=up", "ref==none"])
    await r.content.list_statuses(filters=["ref=="])
    await r.content.list_statuses(filters=["total"])
    await r.content.status(ref="../../up")
    await r.content.abort(ref="../../up")
    await r.content.abort(ref="../../up")
    await r.content.status(ref="../../up")
    await r.content.abort(ref="t")
    await r.content.list_statuses(filters=[])
    # A new total makes a new write.
    await write(r, "n", request(WRITE, OTHER, total=9))
    await r.content.status(ref="n")
    await write(r, "n", request(STAT, total=9))
    await write(r, "n", request(STAT, total=3))
    await r.content.abort(ref="n")
    await write(r, "x", content.WriteContentRequest(action=content.WriteAction(9)))
    await r.content.abort(ref="x")


@scenario(alone=True)
async def locked(r: Recorder) -> None:
    leave = asyncio.Event()

    async def messages() -> AsyncIterator[Any]:
        yield request(WRITE, HELLO, ref="l")
        await leave.wait()
        yield request(COMMIT, offset=len(HELLO))

    async def two_writers() -> None:
        holder = r.stub(content.ContentStub).write(messages())
        await r.call("one writer", anext(holder))
        await write(r, "l", request(STAT))
        await r.content.status(ref="l")
        await r.content.abort(ref="l")
        await r.content.status(ref="l")
        leave.set()
        await r.call("the rest", holder)

    await two_writers()
    await write(r, "l", request(STAT))
    await r.content.abort(ref="l")


@scenario(alone=True)
async def blobs(r: Recorder) -> None:
    digest, labels = digests.of(HELLO), {"a": "1", "b.c": "2", "d": "3"}
    await write(r, "a", request(COMMIT, HELLO, labels=labels))
    await write(r, "b", request(COMMIT, OTHER))
    await write(r, "c", request(COMMIT, BIG))
    for bad in BAD_DIGESTS:
        await r.content.info(digest=bad)
        await r.content.delete(digest=bad)
        await read(r, bad)
        await update(r, bad, {})
    for missing in (MISSING, "sha384:" + "a" * 96, "sha512:" + "0" * 128):
        await r.content.info(digest=missing)
        await r.content.delete(digest=missing)
        await read(r, missing)
        await update(r, missing, {})
    await update(r, digest, {"a": "9"}, "labels.a", "labels.b.c", "labels.z")
    await update(r, digest, {"a": "8"}, "labels.a", "size")
    await update(r, digest, {}, "digest")
    await update(r, digest, {}, "")
    await update(r, digest, {"x": LONG})
    await update(r, digest, {"": "1"})
    await r.content.info(digest=digest)
    await update(r, digest, {"x": "y", "e": ""})
    await update(r, digest, {"q": "r"}, "labels")
    await update(r, digest, {})
    await update(r, digest, {"a.b": "1", "c": "2"})
    for filters in (
        [],
        [f"digest=={digest}"],
        [f"digest!={digest}"],
        ["labels.c"],
        ['labels."a.b"==1', f"digest=={MISSING}"],
        ["size==13"],
        ["size!=1"],
        ["nothing"],
        ["digest=="],
        ["labels."],
    ):
        await r.content.list(filters=[*filters])
    for place in (
        (0, 0),
        (5, 0),
        (0, 5),
        (5, 5),
        (5, 99),
        (-3, 0),
        (-3, -3),
        (13, 0),
        (13, 5),
        (14, 0),
    ):
        await read(r, digest, *place)
    await read(r, digest, 2**63 - 1, 2**63 - 1)
    await read(r, digest, 1, 2**63 - 1)
    await read(r, digests.of(BIG))
    await read(r, digests.of(BIG), 5)
    await read(r, digests.of(BIG), 5, (1 << 20) + 1)
    await r.content.delete(digest=digest)
    await r.content.delete(digest=digest)
    await r.content.info(digest=digest)
    await read(r, digest)
    await r.content.list(filters=[f"digest=={digest}"])


@scenario(alone=True)
async def update_of_nothing(r: Recorder) -> None:
    await r.content.update()


@scenario(alone=True)
async def many(r: Recorder) -> None:
    """A hundred to a message. The lease keeps them from containerd's garbage collector."""
    await r.leases.create(id="l")
    for number in range(100):
        await write(r, "w", request(COMMIT, b"%d" % number), lease="l")
    await r.content.list(filters=[])
    await write(r, "w", request(COMMIT, b"100"), lease="l")
    await r.content.list(filters=[])


@scenario(alone=True)
async def shared(r: Recorder) -> None:
    digest, size = digests.of(HELLO), len(HELLO)
    async with r.within(f"{r.namespace}-other") as other:
        await write(r, "a", request(COMMIT, HELLO, labels={"mine": "1"}))
        await other.content.info(digest=digest)
        await read(other, digest)
        await other.content.list(filters=[])
        await update(other, digest, {})
        await other.content.delete(digest=digest)
        # Naming it is enough; but what is given is written.
        await write(other, "s", request(STAT, expected=digest, total=size))
        await other.content.status(ref="s")
        await other.content.list_statuses(filters=[])
        await other.content.info(digest=digest)
        await write(
            other, "s", request(STAT, expected=digest), request(COMMIT, offset=size, total=9)
        )
        other_expected = request(COMMIT, offset=size, expected=MISSING)
        await write(other, "s", request(STAT, expected=digest), other_expected)
        await write(
            other,
            "s",
            request(STAT, expected=digest),
            request(COMMIT, offset=size, labels={"b": "2"}),
        )
        await other.content.info(digest=digest)
        await other.content.status(ref="s")
        await other.content.delete(digest=digest)
        await write(
            other, "t", request(STAT, expected=digest), request(WRITE, OTHER), request(STAT)
        )
        await other.content.abort(ref="t")
        more = request(WRITE, b"more", offset=size)
        await write(
            other, "u", request(STAT, expected=digest), more, request(COMMIT, offset=size + 4)
        )
        await other.content.abort(ref="u")
        await write(other, "v", request(STAT, expected=digest, total=99))
        await other.content.abort(ref="v")
        await write(other, "w", request(COMMIT, HELLO))
        await r.content.delete(digest=digest)
        await read(other, digest)


@scenario(alone=True)
async def leased(r: Recorder) -> None:
    await r.leases.create(id="l")
    await write(r, "a", request(WRITE, HELLO), lease="none")
    await r.content.status(ref="a")
    await write(r, "a", request(WRITE, HELLO), lease="l")
    await r.leases.list_resources(id="l")
    await write(r, "a", request(COMMIT, offset=len(HELLO)), lease="l")
    await r.leases.list_resources(id="l")
    await write(r, "b", request(COMMIT, OTHER))
    await write(r, "b", request(COMMIT, OTHER, expected=digests.of(OTHER)), lease="l")
    await r.leases.list_resources(id="l")
    await r.content.delete(digest=digests.of(OTHER), metadata={"containerd-lease": "l"})
    await r.leases.list_resources(id="l")
    await write(r, "c", request(STAT), lease="l")
    await r.content.abort(ref="c", metadata={"containerd-lease": "l"})
    await r.leases.list_resources(id="l")


@scenario(alone=True)
async def no_namespace(r: Recorder) -> None:
    """For want of a namespace, and for a bad one."""
    async with r.within(None) as none, r.within("a/b") as bad:
        for each in (none, bad):
            for digest in ("bad", MISSING):
                await each.content.info(digest=digest)
                await update(each, digest, {})
                await each.content.delete(digest=digest)
                await read(each, digest)
            await each.content.list(filters=["bad=="])
            await each.content.status(ref="a")
            await each.content.list_statuses(filters=["bad=="])
            await each.content.abort(ref="a")
            await write(each, "", request(STAT))
            await write(each, "a", request(STAT))
            await each.images.get(name="a")
            await each.images.list(filters=["a=="])
            await each.images.create(image=image("a"))
            await each.images.update(image=image("a"))
            await each.images.delete(name="a")


@scenario(alone=True)
async def occupied(r: Recorder) -> None:
    async def empty() -> None:
        await r.namespaces.delete(name=r.namespace)

    await write(r, "a", request(WRITE, HELLO))
    await empty()
    await r.content.status(ref="a")
    await write(r, "a", request(COMMIT, HELLO))
    await empty()
    await r.images.create(image=image())
    await empty()
    await r.content.delete(digest=digests.of(HELLO))
    await empty()
    await r.images.delete(name="i")
    await empty()
    await empty()
