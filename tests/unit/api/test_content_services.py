"""The content and images services, called as their server calls them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import betterproto2
import pytest

from taskd import digests
from taskd.api import request
from taskd.api.content import Content
from taskd.api.images import Images
from taskd.api.request import LEASE_HEADER
from taskd.content import ContentStore
from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unknown,
)
from taskd.events import Bus, Journal
from taskd.metadata import Database, LeaseStore, Resource
from taskd.metadata.told import ToldImages
from taskd.proto.containerd import events, types
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.images import v1 as images
from taskd.proto.google import protobuf
from taskd.types import TypedValue
from taskd.wellknown import nanoseconds, pack

STAT, WRITE, COMMIT = (
    content.WriteAction.STAT,
    content.WriteAction.WRITE,
    content.WriteAction.COMMIT,
)

HELLO = b"hello, world\n"
DIGEST = digests.of(HELLO)
NEVER = nanoseconds(None)


class Recorder(Bus):
    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.published: list[tuple[str, str, TypedValue]] = []

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
def calling(namespace: str | None, **metadata: str) -> Iterator[None]:
    if namespace is not None:
        metadata[request.NAMESPACE_HEADER] = namespace
    token = request.current.set(cast("request.Stream", SimpleNamespace(metadata=metadata)))
    yield
    request.current.reset(token)


@pytest.fixture(autouse=True)
def _in_a_namespace() -> Iterator[None]:
    with calling("ns"):
        yield


class TestContent:
    @pytest.fixture
    def service(self, database: Database, bus: Recorder, tmp_path: Path) -> Content:
        return Content(ContentStore(database, tmp_path / "content"), bus)

    async def write(
        self, service: Content, *messages: content.WriteContentRequest
    ) -> list[content.WriteContentResponse]:
        async def sent() -> AsyncIterator[content.WriteContentRequest]:
            for message in messages:
                yield message

        # Each as it is when it is sent: the last message is said again.
        decode = content.WriteContentResponse.parse
        return [decode(bytes(response)) async for response in service.write(sent())]

    async def put(self, service: Content, data: bytes) -> str:
        message = content.WriteContentRequest(action=COMMIT, ref="put", data=data)
        return (await self.write(service, message))[-1].digest

    async def test_write(self, service: Content, bus: Recorder) -> None:
        answers = await self.write(
            service,
            content.WriteContentRequest(action=STAT, ref="ref", total=13, expected=DIGEST),
            content.WriteContentRequest(action=WRITE, data=HELLO[:5]),
            content.WriteContentRequest(action=WRITE, data=HELLO[5:], offset=5),
            content.WriteContentRequest(action=COMMIT, offset=13, labels={"a": "1"}),
            content.WriteContentRequest(action=WRITE, data=b"after the end"),
        )
        assert [(each.action, each.offset, each.digest) for each in answers] == [
            (STAT, 0, digests.of(b"")),
            (WRITE, 5, digests.of(HELLO[:5])),
            (WRITE, 13, DIGEST),
            (COMMIT, 13, DIGEST),
            (COMMIT, 13, DIGEST),
        ]
        assert [each.total for each in answers] == [13] * 5
        info = (await service.info(content.InfoRequest(digest=DIGEST))).info
        assert info is not None
        assert (info.digest, info.size, info.labels) == (DIGEST, 13, {"a": "1"})
        assert bus.published == []

    async def test_times_that_were_not_asked_for(self, service: Content) -> None:
        message = content.WriteContentRequest(action=WRITE, ref="ref", data=HELLO)
        for answer in await self.write(service, message):
            assert nanoseconds(answer.started_at) == nanoseconds(answer.updated_at) == NEVER

    async def test_write_errors(self, service: Content) -> None:
        with pytest.raises(Unknown, match=r"^EOF$"):
            await self.write(service)
        with pytest.raises(InvalidArgument, match=r"^first message must have a reference$"):
            await self.write(service, content.WriteContentRequest())
        message = content.WriteContentRequest(action=WRITE, ref="ref", offset=5)
        with pytest.raises(OutOfRange, match=r"^write @5 must occur at current offset 0$"):
            await self.write(service, message)
        message = content.WriteContentRequest(action=COMMIT, ref="ref", data=HELLO, total=5)
        with pytest.raises(FailedPrecondition):
            await self.write(service, message)
        with calling(None), pytest.raises(FailedPrecondition, match="^namespace is required"):
            await self.write(service, message)

    async def test_what_came_meanwhile(self, service: Content) -> None:
        async def sent() -> AsyncIterator[content.WriteContentRequest]:
            yield content.WriteContentRequest(action=STAT, ref="ref")
            await self.put(service, HELLO)
            yield content.WriteContentRequest(action=WRITE, data=HELLO, expected=DIGEST)

        with pytest.raises(AlreadyExists, match=rf"^blob with expected digest {DIGEST} exists$"):
            async for _ in service.write(sent()):
                pass
        statuses = await service.list_statuses(content.ListStatusesRequest())
        assert statuses.statuses == []

    async def test_status_and_abort(self, service: Content) -> None:
        message = content.WriteContentRequest(action=WRITE, ref="ref", data=HELLO, total=20)
        await self.write(service, message)
        status = (await service.status(content.StatusRequest(ref="ref"))).status
        assert status is not None
        assert (status.ref, status.offset, status.total) == ("ref", 13, 20)
        listed = await service.list_statuses(content.ListStatusesRequest(filters=["ref==ref"]))
        assert listed.statuses == [status]
        await service.abort(content.AbortRequest(ref="ref"))
        with pytest.raises(NotFound, match=r'^could not get status for ref "ref": reference ref: '):
            await service.status(content.StatusRequest(ref="ref"))

    async def test_a_write_that_is_left_can_be_resumed_at_once(self, service: Content) -> None:
        class Stream:
            async def send_message(self, message: betterproto2.Message) -> None:
                raise ConnectionError("gone")

        async def sent() -> AsyncIterator[content.WriteContentRequest]:
            yield content.WriteContentRequest(action=WRITE, ref="ref", data=HELLO)

        for _ in range(3):
            with pytest.raises(ConnectionError):
                await service._call_rpc_handler_server_stream(service.write, Stream(), sent())

    async def test_read(self, service: Content) -> None:
        data = bytes(range(256)) * (5 << 10)
        digest = await self.put(service, data)
        message = content.ReadContentRequest(digest=digest, offset=5)
        answers = [answer async for answer in service.read(message)]
        assert [answer.offset for answer in answers] == [0, 1 << 20]
        assert b"".join(answer.data for answer in answers) == data[5:]
        message = content.ReadContentRequest(digest="sha256:x")
        with pytest.raises(InvalidArgument, match=r"^sha256:x: invalid checksum digest length$"):
            await anext(service.read(message))

    async def test_list_comes_in_batches(self, service: Content) -> None:
        for number in range(101):
            await self.put(service, b"%d" % number)
        answers = [answer async for answer in service.list(content.ListContentRequest())]
        assert [len(answer.info) for answer in answers] == [100, 1]
        assert {nanoseconds(info.updated_at) for info in answers[0].info} == {NEVER}
        message = content.ListContentRequest(filters=[f"digest=={digests.of(b'7')}"])
        [answer] = [answer async for answer in service.list(message)]
        assert [info.digest for info in answer.info] == [digests.of(b"7")]

    async def test_update(self, service: Content) -> None:
        await self.put(service, HELLO)
        message = content.UpdateRequest(
            info=content.Info(digest=DIGEST, labels={"a": "1", "b": "2"}),
            update_mask=protobuf.FieldMask(paths=["labels.a"]),
        )
        updated = (await service.update(message)).info
        assert updated is not None
        assert (updated.size, updated.labels) == (13, {"a": "1"})
        with pytest.raises(InvalidArgument, match=r'^"" failed validation$'):
            await service.update(content.UpdateRequest())

    async def test_delete(self, service: Content, bus: Recorder) -> None:
        await self.put(service, HELLO)
        await service.delete(content.DeleteContentRequest(digest=DIGEST))
        event = pack(events.ContentDelete(digest=DIGEST))
        assert bus.published == [("ns", "/content/delete", event)]
        with pytest.raises(NotFound):
            await service.delete(content.DeleteContentRequest(digest=DIGEST))
        with pytest.raises(InvalidArgument, match=r"^invalid checksum digest format$"):
            await service.delete(content.DeleteContentRequest(digest="x"))
        assert len(bus.published) == 1

    async def test_leases(self, service: Content, database: Database) -> None:
        leases = LeaseStore(database)
        await leases.create("ns", "l", {})
        with calling("ns", **{LEASE_HEADER: "l"}):
            await self.put(service, HELLO)
        assert await leases.list_resources("ns", "l") == [Resource(DIGEST, "content")]
        with calling("ns", **{LEASE_HEADER: "none"}), pytest.raises(NotFound):
            await self.put(service, b"other")


class TestImages:
    @pytest.fixture
    def service(self, database: Database, bus: Recorder) -> Images:
        async def collect() -> None:
            bus.published.append(("", "collected", TypedValue("")))

        return Images(ToldImages(database, bus), collect)

    @staticmethod
    def image(**fields: Any) -> images.Image:
        descriptor: Any = types.Descriptor
        target = descriptor(
            media_type="application/x", digest=DIGEST, size=13, annotations={"k": "v"}
        )
        return images.Image(**{"name": "i", "target": target, **fields})

    async def create(self, service: Images, **fields: Any) -> images.Image:
        message = images.CreateImageRequest(image=self.image(**fields))
        created = (await service.create(message)).image
        assert created is not None
        return created

    async def test_create_and_get(self, service: Images, bus: Recorder) -> None:
        created = await self.create(service, labels={"a": "1", "e": ""})
        times = {"created_at": created.created_at, "updated_at": created.created_at}
        assert created == self.image(labels={"a": "1"}, **times)
        got = await service.get(images.GetImageRequest(name="i"))
        assert got == images.GetImageResponse(image=created)
        event = pack(images.ImageCreate(name="i", labels={"a": "1"}))
        assert event.type_url == "containerd.services.images.v1.ImageCreate"
        assert bus.published == [("ns", "/images/create", event)]

    async def test_update(self, service: Images, bus: Recorder) -> None:
        await self.create(service)
        bus.published.clear()
        message = images.UpdateImageRequest(
            image=images.Image(name="i", labels={"b": "2"}),
            update_mask=protobuf.FieldMask(paths=["labels"]),
            source_date_epoch=protobuf.Timestamp(seconds=5, nanos=6),
        )
        updated = (await service.update(message)).image
        assert updated is not None
        assert updated.labels == {"b": "2"}
        assert updated.updated_at == message.source_date_epoch
        event = pack(images.ImageUpdate(name="i", labels={"b": "2"}))
        assert bus.published == [("ns", "/images/update", event)]

    async def test_list_and_delete(self, service: Images, bus: Recorder) -> None:
        created = [await self.create(service, name=name) for name in "abc"]
        message = images.ListImagesRequest(filters=["name==a", "name==c"])
        assert (await service.list(message)).images == [created[0], created[2]]
        bus.published.clear()
        wrong: Any = types.Descriptor(digest=digests.of(b""))  # type: ignore[call-arg]
        with pytest.raises(NotFound):
            await service.delete(images.DeleteImageRequest(name="a", target=wrong))
        await service.delete(images.DeleteImageRequest(name="a", sync=True))
        assert bus.published == [
            ("ns", "/images/delete", pack(images.ImageDelete(name="a"))),
            ("", "collected", TypedValue("")),
        ]
        listed = await service.list(images.ListImagesRequest())
        assert [image.name for image in listed.images] == ["b", "c"]

    async def test_what_fails_is_not_published(self, service: Images, bus: Recorder) -> None:
        for message in (
            images.CreateImageRequest(),
            images.CreateImageRequest(image=images.Image()),
        ):
            with pytest.raises(InvalidArgument, match=r"^Image\.Name required$"):
                await service.create(message)
        with pytest.raises(InvalidArgument, match=r"^Image\.Name required$"):
            await service.update(images.UpdateImageRequest())
        with pytest.raises(InvalidArgument, match=r"^Target\.Digest"):
            await self.create(service, target=None)
        with pytest.raises(NotFound):
            await service.delete(images.DeleteImageRequest(name="i"))
        with calling(None), pytest.raises(FailedPrecondition):
            await service.get(images.GetImageRequest(name="i"))
        assert bus.published == []
