"""The content and images services answer as containerd's do, call by call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from grpclib import GRPCError
from grpclib.client import Channel
from harness.daemons import Containerd, Daemon, Taskd, client

from taskd import digests
from taskd.proto.containerd import types
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.images import v1 as images
from taskd.proto.containerd.services.leases import v1 as leases
from taskd.proto.containerd.services.namespaces import v1 as namespaces
from taskd.proto.google.protobuf import FieldMask, Timestamp

STAT, WRITE, COMMIT = content.WriteAction

HELLO = b"hello, world\n"
OTHER = b"other"
BIG = bytes(range(256)) * (5 << 12)  # 5 MiB
MISSING = "sha256:" + "2" * 64
BAD_DIGESTS = ("", "foo", "sha256:", ":x", "sha256:abc", "md5:" + "a" * 32, "sha256:" + "A" * 64)
LONG = "x" * 4096


class Recorder:
    """Calls a daemon, and notes down what it answers."""

    def __init__(self, daemon: Daemon, channel: Channel) -> None:
        self.daemon = daemon
        self.content = content.ContentStub(channel)
        self.images = images.ImagesStub(channel)
        self.leases = leases.LeasesStub(channel)
        self.namespaces = namespaces.NamespacesStub(channel)
        self.answers: list[str] = []

    def another(self, channel: Channel) -> Recorder:
        """One that calls in another namespace, and notes down in the same place."""
        other = Recorder(self.daemon, channel)
        other.answers = self.answers
        return other

    async def call(self, what: str, answers: Awaitable[Any] | AsyncIterator[Any]) -> None:
        """Note down each answer, and how the call ended."""
        lines = [what]
        try:
            if isinstance(answers, AsyncIterator):
                async for answer in answers:
                    lines.append(shown(answer))
            else:
                lines.append(shown(await answers))
        except GRPCError as error:
            lines.append(f"{error.status.name}: {error.message}")
        text = "\n    ".join(lines).replace(str(self.daemon.folder), "FOLDER")
        text = re.sub(r"ingest/[0-9a-f]{64}", "ingest/HASH", text)
        self.answers.append(re.sub(r"locked for \S+ \(since [^)]*\)", "locked", text))

    async def write(
        self, ref: str, *messages: content.WriteContentRequest, lease: str = ""
    ) -> None:
        """One call of Write that sends these messages, the first of which has the ref."""
        messages[0].ref = ref
        what = " ".join(f"{each.action.name}@{each.offset}+{len(each.data)}" for each in messages)
        metadata = {"containerd-lease": lease} if lease else None
        await self.call(f"write {ref}: {what}", self.content.write(messages, metadata=metadata))

    async def info(self, digest: str) -> None:
        await self.call(f"info {digest}", self.content.info(content.InfoRequest(digest=digest)))

    async def update(self, digest: str, labels: dict[str, str], *paths: str) -> None:
        message = content.UpdateRequest(
            info=content.Info(digest=digest, size=7, labels=labels),
            update_mask=FieldMask(paths=list(paths)) if paths else None,
        )
        await self.call(f"update {paths}", self.content.update(message))

    async def list(self, *filters: str) -> None:
        message = content.ListContentRequest(filters=list(filters))
        await self.call(f"list {filters}", self.content.list(message))

    async def delete(self, digest: str) -> None:
        message = content.DeleteContentRequest(digest=digest)
        await self.call(f"delete {digest}", self.content.delete(message))

    async def read(self, digest: str, offset: int = 0, size: int = 0) -> None:
        message = content.ReadContentRequest(digest=digest, offset=offset, size=size)
        await self.call(f"read {digest} {offset} {size}", self.content.read(message))

    async def status(self, ref: str) -> None:
        await self.call(f"status {ref}", self.content.status(content.StatusRequest(ref=ref)))

    async def statuses(self, *filters: str) -> None:
        message = content.ListStatusesRequest(filters=list(filters))
        await self.call(f"statuses {filters}", self.content.list_statuses(message))

    async def abort(self, ref: str) -> None:
        await self.call(f"abort {ref}", self.content.abort(content.AbortRequest(ref=ref)))


def shown(message: betterproto2.Message) -> str:
    return str(plain(message))


def plain(value: Any) -> Any:
    """What a message says; of a time only whether it is one, or Go's zero."""
    match value:
        case Timestamp():
            if value.seconds > 10**9:
                return "some time"
            return "never" if value.seconds < 0 else f"{value.seconds}.{value.nanos:09}"
        case betterproto2.Message():
            fields = {name: plain(field) for name, field in vars(value).items() if name[0] != "_"}
            return {name: field for name, field in fields.items() if field}
        case list():
            return sorted(map(plain, value), key=str)
        case dict():
            return dict(sorted(value.items()))
        case bytes() if len(value) > 99:
            return f"{len(value)} bytes: {digests.of(value)}"
    return value


def request(action: content.WriteAction, data: bytes = b"", **fields: Any) -> Any:
    return content.WriteContentRequest(action=action, data=data, **fields)


async def write(r: Recorder) -> None:
    size, digest = len(HELLO), digests.of(HELLO)
    await r.call("write", r.content.write([]))
    await r.write("", request(STAT))
    await r.write("a", request(STAT), request(WRITE, HELLO), request(COMMIT, offset=size))
    await r.write("a", request(COMMIT, HELLO))
    await r.write("a", request(STAT, expected=digest))
    await r.write("a", request(STAT), request(COMMIT, HELLO, expected=digest))
    await r.status("a")
    pieces = [
        request(WRITE, BIG[at : at + (1 << 20)], offset=at) for at in range(0, 5 << 20, 1 << 20)
    ]
    end = request(COMMIT, offset=len(BIG), total=len(BIG), expected=digests.of(BIG))
    await r.write("big", request(STAT, total=len(BIG)), *pieces, end)
    await r.write("e", request(COMMIT))
    await r.write("e", request(COMMIT))
    # What is not as expected can be written on, or anew.
    await r.write("s", request(COMMIT, OTHER, total=6))
    await r.status("s")
    await r.write("s", request(STAT), request(COMMIT, b"!", offset=5, expected=MISSING))
    await r.write("s", request(STAT), request(COMMIT, b"!", offset=5))
    await r.write("s", request(STAT), request(COMMIT, b"!", offset=7))
    await r.write("s", request(STAT), request(WRITE, b"?", offset=-1), request(STAT))
    await r.write("s", request(STAT, total=6), request(WRITE, b"anew"), request(STAT))
    await r.write("s", request(COMMIT, offset=4, total=-4))
    await r.write("s", request(COMMIT, offset=4, expected="../../x"))
    await r.write("s", request(COMMIT, offset=4, expected="sha512:" + "1" * 128))
    await r.write("s", request(COMMIT, offset=4, labels={"a": LONG}))
    await r.write("s", request(COMMIT, offset=4, labels={"a": "1", "b": ""}))
    await r.info(digests.of(b"anew"))
    for bad in ("../x", "sha256:../x"):
        await r.write("t", request(WRITE, b"?", expected=bad))
    await r.write("../../up", request(STAT), request(WRITE, OTHER))
    await r.statuses()
    await r.statuses("ref==t")
    await r.statuses("ref~=up", "ref==none")
    await r.statuses("ref==")
    await r.statuses("total")
    await r.status("../../up")
    await r.abort("../../up")
    await r.abort("../../up")
    await r.status("../../up")
    await r.abort("t")
    await r.statuses()
    # A new total makes a new write.
    await r.write("n", request(WRITE, OTHER, total=9))
    await r.status("n")
    await r.write("n", request(STAT, total=9))
    await r.write("n", request(STAT, total=3))
    await r.abort("n")
    await r.write("x", content.WriteContentRequest(action=content.WriteAction(9)))
    await r.abort("x")


async def locked(r: Recorder) -> None:
    leave = asyncio.Event()

    async def messages() -> AsyncIterator[Any]:
        yield request(WRITE, HELLO, ref="l")
        await leave.wait()
        yield request(COMMIT, offset=len(HELLO))

    async def two_writers() -> None:
        holder = r.content.write(messages())
        await r.call("one writer", _first(holder))
        await r.write("l", request(STAT))
        await r.status("l")
        await r.abort("l")
        await r.status("l")
        leave.set()
        await r.call("the rest", holder)

    await two_writers()
    await r.write("l", request(STAT))
    await r.abort("l")


async def _first(answers: AsyncIterator[Any]) -> Any:
    return await anext(answers)


async def blobs(r: Recorder) -> None:
    digest, labels = digests.of(HELLO), {"a": "1", "b.c": "2", "d": "3"}
    await r.write("a", request(COMMIT, HELLO, labels=labels))
    await r.write("b", request(COMMIT, OTHER))
    await r.write("c", request(COMMIT, BIG))
    for bad in BAD_DIGESTS:
        await r.info(bad)
        await r.delete(bad)
        await r.read(bad)
        await r.update(bad, {})
    for missing in (MISSING, "sha384:" + "a" * 96, "sha512:" + "0" * 128):
        await r.info(missing)
        await r.delete(missing)
        await r.read(missing)
        await r.update(missing, {})
    await r.call("update", r.content.update(content.UpdateRequest()))
    await r.update(digest, {"a": "9"}, "labels.a", "labels.b.c", "labels.z")
    await r.update(digest, {"a": "8"}, "labels.a", "size")
    await r.update(digest, {}, "digest")
    await r.update(digest, {}, "")
    await r.update(digest, {"x": LONG})
    await r.update(digest, {"": "1"})
    await r.info(digest)
    await r.update(digest, {"x": "y", "e": ""})
    await r.update(digest, {"q": "r"}, "labels")
    await r.update(digest, {})
    await r.update(digest, {"a.b": "1", "c": "2"})
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
        await r.list(*filters)
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
        await r.read(digest, *place)
    await r.read(digest, 2**63 - 1, 2**63 - 1)
    await r.read(digest, 1, 2**63 - 1)
    await r.read(digests.of(BIG))
    await r.read(digests.of(BIG), 5)
    await r.read(digests.of(BIG), 5, (1 << 20) + 1)
    await r.delete(digest)
    await r.delete(digest)
    await r.info(digest)
    await r.read(digest)
    await r.list(f"digest=={digest}")


async def many(r: Recorder) -> None:
    """A hundred to a message. The lease keeps them from containerd's garbage collector."""
    await r.call("lease", r.leases.create(leases.CreateRequest(id="l")))
    for number in range(100):
        await r.write("w", request(COMMIT, b"%d" % number), lease="l")
    await r.list()
    await r.write("w", request(COMMIT, b"100"), lease="l")
    await r.list()


async def shared(r: Recorder) -> None:
    digest, size = digests.of(HELLO), len(HELLO)
    async with client(r.daemon.address, "other") as channel:
        other = r.another(channel)
        await r.write("a", request(COMMIT, HELLO, labels={"mine": "1"}))
        await other.info(digest)
        await other.read(digest)
        await other.list()
        await other.update(digest, {})
        await other.delete(digest)
        # Naming it is enough; but what is given is written.
        await other.write("s", request(STAT, expected=digest, total=size))
        await other.status("s")
        await other.statuses()
        await other.info(digest)
        await other.write(
            "s", request(STAT, expected=digest), request(COMMIT, offset=size, total=9)
        )
        other_expected = request(COMMIT, offset=size, expected=MISSING)
        await other.write("s", request(STAT, expected=digest), other_expected)
        await other.write(
            "s", request(STAT, expected=digest), request(COMMIT, offset=size, labels={"b": "2"})
        )
        await other.info(digest)
        await other.status("s")
        await other.delete(digest)
        await other.write("t", request(STAT, expected=digest), request(WRITE, OTHER), request(STAT))
        await other.abort("t")
        more = request(WRITE, b"more", offset=size)
        await other.write(
            "u", request(STAT, expected=digest), more, request(COMMIT, offset=size + 4)
        )
        await other.abort("u")
        await other.write("v", request(STAT, expected=digest, total=99))
        await other.abort("v")
        await other.write("w", request(COMMIT, HELLO))
        await r.delete(digest)
        await other.read(digest)


async def leased(r: Recorder) -> None:
    await r.call("lease", r.leases.create(leases.CreateRequest(id="l")))
    held = leases.ListResourcesRequest(id="l")
    await r.write("a", request(WRITE, HELLO), lease="none")
    await r.status("a")
    await r.write("a", request(WRITE, HELLO), lease="l")
    await r.call("resources", r.leases.list_resources(held))
    await r.write("a", request(COMMIT, offset=len(HELLO)), lease="l")
    await r.call("resources", r.leases.list_resources(held))
    await r.write("b", request(COMMIT, OTHER))
    await r.write("b", request(COMMIT, OTHER, expected=digests.of(OTHER)), lease="l")
    await r.call("resources", r.leases.list_resources(held))
    message = content.DeleteContentRequest(digest=digests.of(OTHER))
    await r.call("delete", r.content.delete(message, metadata={"containerd-lease": "l"}))
    await r.call("resources", r.leases.list_resources(held))
    await r.write("c", request(STAT), lease="l")
    await r.call(
        "abort", r.content.abort(content.AbortRequest(ref="c"), metadata={"containerd-lease": "l"})
    )
    await r.call("resources", r.leases.list_resources(held))


async def no_namespace(r: Recorder) -> None:
    """For want of a namespace, and for a bad one."""
    async with Channel(path=str(r.daemon.address)) as none, client(r.daemon.address, "a/b") as bad:
        for each in (r.another(none), r.another(bad)):
            for digest in ("bad", MISSING):
                await each.info(digest)
                await each.update(digest, {})
                await each.delete(digest)
                await each.read(digest)
            await each.list("bad==")
            await each.status("a")
            await each.statuses("bad==")
            await each.abort("a")
            await each.write("", request(STAT))
            await each.write("a", request(STAT))
            await each.call("get", each.images.get(images.GetImageRequest(name="a")))
            await each.call("list", each.images.list(images.ListImagesRequest(filters=["a=="])))
            await each.call("create", each.images.create(images.CreateImageRequest()))
            message: Any = images.CreateImageRequest(image=images.Image(name="a"))
            await each.call("create", each.images.create(message))
            message = images.UpdateImageRequest(image=images.Image(name="a"))
            await each.call("update", each.images.update(message))
            await each.call("delete", each.images.delete(images.DeleteImageRequest(name="a")))


def target(**fields: Any) -> Any:
    defaults = {"media_type": "application/x", "digest": MISSING, "size": 7}
    return types.Descriptor(**{**defaults, **fields})  # type: ignore[call-arg]


def image(name: str = "i", **fields: Any) -> images.Image:
    return images.Image(**{"name": name, "target": target(), **fields})


async def image_records(r: Recorder) -> None:
    async def create(each: images.Image | None) -> None:
        await r.call("create", r.images.create(images.CreateImageRequest(image=each)))

    async def update(each: images.Image | None, *paths: str) -> None:
        mask = FieldMask(paths=list(paths)) if paths else None
        message = images.UpdateImageRequest(image=each, update_mask=mask)
        await r.call(f"update {paths}", r.images.update(message))

    async def get(name: str) -> None:
        await r.call(f"get {name}", r.images.get(images.GetImageRequest(name=name)))

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
        None,
        images.Image(),
        images.Image(name="x"),
        image(),
        image("x", target=None),
        *(image("x", target=target(digest=digest)) for digest in BAD_DIGESTS),
        image("x", target=target(size=0)),
        image("x", target=target(size=-1)),
        image("x", target=target(media_type="")),
        image("x", labels={"a": LONG}, target=None),
        image("x", labels={"": "1"}),
        image("x", target=target(annotations={"": "1"})),
        image("i", target=None),
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
        await r.call(f"list {filters}", r.images.list(images.ListImagesRequest(filters=filters)))
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
        await r.call("delete", r.images.delete(images.DeleteImageRequest(name=name)))
    await r.call("delete", r.images.delete(images.DeleteImageRequest(name="other", sync=True)))
    await r.call("list", r.images.list(images.ListImagesRequest()))


async def occupied(r: Recorder) -> None:
    async def empty() -> None:
        message = namespaces.DeleteNamespaceRequest(name="test")
        await r.call("namespace", r.namespaces.delete(message))

    await r.write("a", request(WRITE, HELLO))
    await empty()
    await r.status("a")
    await r.write("a", request(COMMIT, HELLO))
    await empty()
    await r.call("create", r.images.create(images.CreateImageRequest(image=image())))
    await empty()
    await r.delete(digests.of(HELLO))
    await empty()
    await r.call("delete", r.images.delete(images.DeleteImageRequest(name="i")))
    await empty()
    await empty()


SCENARIOS: Sequence[Callable[[Recorder], Awaitable[None]]] = (
    write,
    locked,
    blobs,
    many,
    shared,
    leased,
    no_namespace,
    image_records,
    occupied,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_same_answers(
    scenario: Callable[[Recorder], Awaitable[None]], containerd: Containerd, folder: Path
) -> None:
    # What no lease holds goes when containerd collects garbage, which it does as it begins.
    await asyncio.sleep(0.3)
    with Taskd(folder / "taskd") as taskd:
        theirs, ours = [await answers(scenario, each) for each in (containerd, taskd)]
    assert len(theirs) == len(ours)
    differing = [
        f"--- containerd\n{their}\n+++ taskd\n{our}"
        for their, our in zip(theirs, ours, strict=True)
        if their != our
    ]
    if differing:
        pytest.fail("\n".join(differing), pytrace=False)


async def answers(scenario: Callable[[Recorder], Awaitable[None]], daemon: Daemon) -> list[str]:
    async with client(daemon.address, "test") as channel:
        recorder = Recorder(daemon, channel)
        await scenario(recorder)
    return recorder.answers
