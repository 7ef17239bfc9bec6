"""Transfers and streams, with a registry that the scenario plays itself."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from grpclib import GRPCError
from grpclib.const import Cardinality
from grpclib.exceptions import ProtocolError, StreamTerminatedError
from harness.fake_registry import FakeRegistry, Request, serving
from harness.registry import Image, layer
from parity.recorder import Recorder
from parity.scenarios import scenario

from taskd.codec import decode
from taskd.proto.containerd import types
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.streaming import v1 as streaming
from taskd.proto.containerd.services.transfer import v1 as transfer
from taskd.proto.containerd.types import transfer as kinds
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.wellknown import pack, to_any

NEWER = ("2",)
# 1.7 asks no registry without TLS, names images of an archive and snapshots otherwise.
BOTH = ("1.7", "2")

IMAGE = Image((layer({"a/one": b"1" * 1000}), layer({"b": b"2"}, links={"c": "b"})))


def packed(message: Any) -> AnyMessage:
    found = to_any(pack(message))
    assert found is not None
    return found


_STREAM = "/containerd.services.streaming.v1.Streaming/Stream"
_BOTH = Cardinality.STREAM_STREAM


def _told(error: BaseException) -> str:
    if isinstance(error, GRPCError):
        return f"{error.status.name}: {error.message}"
    return type(error).__name__


@dataclass
class Stream:
    """A client's stream, and what has come on it."""

    outgoing: Any
    came: list[AnyMessage] = field(default_factory=list)
    ended: anyio.Event = field(default_factory=anyio.Event)
    how: str = ""

    async def send(self, message: Any) -> None:
        await self.outgoing.send(packed(message))

    async def close(self) -> None:
        await self.outgoing.aclose()


@asynccontextmanager
async def opened(recorder: Recorder, name: str, first: Any = None) -> AsyncIterator[Stream]:
    """A stream; it is there once its first answer has come, or its end."""
    sender, receiver = anyio.create_memory_object_stream[AnyMessage](1000)
    stream = Stream(sender)
    begun = anyio.Event()

    async def write(call: Any) -> None:
        with suppress(StreamTerminatedError, anyio.ClosedResourceError):
            async for message in receiver:
                await call.send_message(message)
            await call.end()

    async def read() -> None:
        request = recorder.channel.request(_STREAM, _BOTH, AnyMessage, AnyMessage)
        try:
            async with request as call, anyio.create_task_group() as group:
                await call.send_request()
                group.start_soon(write, call)
                while (message := await call.recv_message()) is not None:
                    stream.came.append(message)
                    begun.set()
                group.cancel_scope.cancel()
            stream.how = "ended"
        except BaseExceptionGroup as failed:
            stream.how = _told(failed.exceptions[0])
        except ProtocolError:
            stream.how = "ended"  # which grpclib does not like, as long as we have not
        except (GRPCError, StreamTerminatedError) as error:
            stream.how = _told(error)
        begun.set()
        stream.ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await sender.send(first or packed(streaming.StreamInit(id=name)))
        await begun.wait()
        assert stream.came or stream.how, name
        yield stream
        with suppress(anyio.ClosedResourceError):
            await stream.close()
        with anyio.move_on_after(5):
            await stream.ended.wait()
        group.cancel_scope.cancel()


def told(recorder: Recorder, stream: Stream) -> None:
    """Note down what a client hears, but for how far it is by and by."""
    found = [decode(kinds.Progress, each.value) for each in stream.came[1:]]
    first = stream.came[0].type_url if stream.came else "nothing"
    recorder.note(f"stream begins with {first}")
    blobs = [each for each in found if each.event in ("waiting", "already exists", "complete")]
    for each in found:
        if each not in blobs and each.event not in ("downloading", "uploading", "extracting"):
            recorder.note(f"progress {recorder.shown(each)}")
    for line in sorted(f"of a blob {recorder.shown(each)}" for each in blobs):
        recorder.note(line)


async def transferred(
    recorder: Recorder, source: Any, destination: Any, *, progress: bool = False
) -> None:
    """Ask for a transfer; what the ends are is noted down."""
    options = transfer.TransferOptions(progress_stream="progress") if progress else None
    request = transfer.TransferRequest(
        source=source if isinstance(source, AnyMessage) else packed(source),
        destination=destination if isinstance(destination, AnyMessage) else packed(destination),
        options=options,
    )
    said = " to ".join(
        f"{type(each).__name__} {recorder.shown(each)}" for each in (source, destination)
    )
    answer = transfer.TransferStub(recorder.channel).transfer(request)
    if not progress:
        await recorder.call(f"Transfer {said}", answer)
        return
    async with opened(recorder, "progress") as stream:
        await recorder.call(f"Transfer {said}", answer)
        with anyio.move_on_after(5):
            await stream.ended.wait()
        told(recorder, stream)


@asynccontextmanager
async def registry(recorder: Recorder, image: Image = IMAGE) -> AsyncIterator[FakeRegistry]:
    async with serving(image) as found:
        recorder._names[found.host] = "REGISTRY"
        yield found


def at(found: FakeRegistry, name: str = "a/b:t", **resolver: Any) -> kinds.OciRegistry:
    resolver = {"default_scheme": "http", **resolver}
    return kinds.OciRegistry(
        reference=found.name(name), resolver=kinds.RegistryResolver(**resolver)
    )


def here(architecture: str = "amd64") -> types.Platform:
    return types.Platform(os="linux", architecture=architecture)


async def stored(recorder: Recorder) -> None:
    """Note down all that there is."""
    await recorder.images.list()
    async for each in content.ContentStub(recorder.channel).list(content.ListContentRequest()):
        for info in sorted(each.info, key=lambda info: info.digest):
            recorder.note(f"content {info.digest} {info.size} {dict(sorted(info.labels.items()))}")
    await recorder.leases.list()


@scenario(generations=NEWER)
async def pull(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        store = kinds.ImageStore(name=found.name(), labels={"a": "b"})
        await transferred(recorder, at(found), store, progress=True)
        await stored(recorder)
        await transferred(recorder, at(found), store, progress=True)
        await stored(recorder)


@scenario(generations=NEWER)
async def pull_under_another_name(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        references = [
            kinds.ImageReference(name="one"),
            kinds.ImageReference(name="two", is_prefix=True),
            kinds.ImageReference(name="three", is_prefix=True, add_digest=True),
        ]
        store = kinds.ImageStore(name="zero", extra_references=references)
        await transferred(recorder, at(found), store, progress=True)
        await transferred(recorder, at(found), kinds.ImageStore())
        await stored(recorder)


@scenario(generations=NEWER)
async def pull_what_is_not_there(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        for name in ("a/b:other", "a/b", "a/b@sha256:1", f"a/b@sha256:{'0' * 64}"):
            await transferred(recorder, at(found, name), kinds.ImageStore(name="x"))
        for reference in ("", "https://x/y:z", "/y:z"):
            source = kinds.OciRegistry(reference=reference)
            await transferred(recorder, source, kinds.ImageStore(name="x"))
        await stored(recorder)


@scenario(generations=NEWER)
async def pull_of_other_bytes(recorder: Recorder) -> None:
    async with registry(recorder) as found:

        async def other(request: Request) -> bool:
            if request.path.endswith(IMAGE.blobs[1].digest):
                await request.answer(200, bytes(len(IMAGE.blobs[1].content)))
                return True
            return False

        found.handlers.append(other)
        await transferred(recorder, at(found), kinds.ImageStore(name="x"))
        await recorder.images.list()


@scenario(generations=NEWER)
async def pull_from_a_registry_that_refuses(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        for status in (401, 403, 400, 451):

            async def refuse(request: Request, status: int = status) -> bool:
                errors = [{"code": "DENIED", "message": "requested access is denied"}]
                await request.answer(status, json.dumps({"errors": errors}).encode())
                return True

            found.handlers[:] = [refuse]
            await transferred(recorder, at(found), kinds.ImageStore(name="x"))


@scenario(generations=NEWER)
async def pull_of_one_platform(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        store = kinds.ImageStore(name="x", platforms=[here("arm64")])
        await transferred(recorder, at(found), store)
        limited = kinds.ImageStore(name="y", platforms=[here()], manifest_limit=1)
        await transferred(recorder, at(found), limited)
        await stored(recorder)


@scenario(generations=NEWER)
async def pull_and_unpack(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        unpacks = [kinds.UnpackConfiguration(platform=here(), snapshotter="overlayfs")]
        store = kinds.ImageStore(name="x", platforms=[here()], unpacks=unpacks)
        await transferred(recorder, at(found), store, progress=True)
        await stored(recorder)
        await recorder.snapshots.list(snapshotter="overlayfs")
        await transferred(recorder, at(found), store, progress=True)


@scenario(generations=NEWER)
async def pull_and_unpack_for_nobody(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        unpacks = [kinds.UnpackConfiguration(platform=here(), snapshotter="none")]
        store = kinds.ImageStore(name="x", platforms=[here()], unpacks=unpacks)
        await transferred(recorder, at(found), store)
        await recorder.images.list()


@scenario(generations=NEWER)
async def pull_with_a_password(recorder: Recorder) -> None:
    async with registry(recorder) as found:

        async def asks(request: Request) -> bool:
            if request.headers.get("authorization") != "Basic dTpw":
                await request.answer(401, WWW_Authenticate='Basic realm="r"')
                return True
            return False

        found.handlers.append(asks)
        await transferred(recorder, at(found), kinds.ImageStore(name="x"))
        await transferred(recorder, at(found, auth_stream="who"), kinds.ImageStore(name="x"))
        for password in ("p", "wrong"):
            async with opened(recorder, password) as who, anyio.create_task_group() as group:

                async def answer(who: Stream = who, password: str = password) -> None:
                    answered = 1
                    while True:
                        await anyio.sleep(0.01)
                        for asked in who.came[answered:]:
                            said = decode(kinds.AuthRequest, asked.value)
                            line = f"{asked.type_url} {recorder.shown(said)}"
                            if recorder.normalised(line) not in recorder.lines:
                                recorder.note(line)  # containerd asks for each refusal
                            credentials = kinds.AuthType.CREDENTIALS
                            await who.send(
                                kinds.AuthResponse(
                                    auth_type=credentials, username="u", secret=password
                                )
                            )
                        answered = len(who.came)

                group.start_soon(answer)
                source = at(found, auth_stream=password)
                await transferred(recorder, source, kinds.ImageStore(name="x"))
                group.cancel_scope.cancel()
        await recorder.images.list()


@scenario("transfer: pull with requests that are shown", generations=NEWER)
async def pull_shown(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        for debug in (kinds.HttpDebug.DEBUG, kinds.HttpDebug.TRACE, kinds.HttpDebug.DISABLED):
            name = f"logs{debug.name}"
            async with opened(recorder, name) as logs:
                await logs.send(kinds.WindowUpdate(update=1 << 24))
                source = at(found, http_debug=debug, logs_stream=name)
                await transferred(recorder, source, kinds.ImageStore(name=name))
                with anyio.move_on_after(5 if debug else 0):
                    await logs.ended.wait()
                shown = bytes_of(logs).decode(errors="replace")
            parts = r'[A-Z]+ /v2\S* HTTP/1.1|HTTP/1.1 \d+ \w+|Host: \S+|\{"schemaVersion".*?\}\]\}'
            for line in sorted(set(re.findall(parts, shown))):
                recorder.note(f"{name} {line}")
        source = at(found, http_debug=kinds.HttpDebug.BOTH, logs_stream="none")
        await transferred(recorder, source, kinds.ImageStore(name="x"))


@scenario(generations=NEWER)
async def push(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        await transferred(recorder, at(found), kinds.ImageStore(name="x"))
        # It has everything already, but for the name.
        await transferred(recorder, kinds.ImageStore(name="x"), at(found, "a/b:t"), progress=True)
        await transferred(recorder, kinds.ImageStore(name="other"), at(found, "a/b:t"))

        async def refuse(request: Request) -> bool:
            await request.answer(404 if request.method == "HEAD" else 403)
            return True

        found.handlers.append(refuse)
        await transferred(recorder, kinds.ImageStore(name="x"), at(found, "c/d:t"))


@scenario(generations=NEWER)
async def push_all_of_it(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        await transferred(recorder, at(found), kinds.ImageStore(name="x"))

        async def takes(request: Request) -> bool:
            match request.method:
                case "HEAD":
                    await request.answer(404)
                case "POST":
                    await request.answer(202, Location="/v2/c/d/blobs/uploads/1?_state=s")
                case "PUT":
                    named = re.search(r"sha256(?::|%3A)([0-9a-f]+)", request.path)
                    digest = f"sha256:{named[1]}" if named else IMAGE.manifest.digest
                    await request.answer(201, Docker_Content_Digest=digest)
            return True

        found.requests.clear()
        found.handlers.append(takes)
        await transferred(recorder, kinds.ImageStore(name="x"), at(found, "c/d:t"), progress=True)
        asked = [f"{each.method} {each.path}" for each in found.requests]
        for line in sorted(asked):
            recorder.note(line.replace("%3A", ":").replace("%2F", "/"))


@scenario(generations=NEWER)
async def tag(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        await transferred(recorder, at(found), kinds.ImageStore(name="x", labels={"a": "b"}))
        await transferred(recorder, kinds.ImageStore(name="x"), kinds.ImageStore(name="y"))
        both = kinds.ImageStore(name="y", labels={"c": "d"})
        await transferred(recorder, kinds.ImageStore(name="x"), both, progress=True)
        await transferred(recorder, kinds.ImageStore(name="z"), kinds.ImageStore(name="y"))
        await transferred(recorder, kinds.ImageStore(name="x"), kinds.ImageStore())
        await transferred(recorder, kinds.ImageStore(), kinds.ImageStore(name="y"))
        await stored(recorder)


def archive(entries: Sequence[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def layout(image: Image = IMAGE, **annotations: str) -> bytes:
    """OCI's layout."""
    manifest = {**image.manifest.descriptor(), "annotations": annotations}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    blobs = [
        (f"blobs/sha256/{each.digest.partition(':')[2]}", each.content)
        for each in (*image.blobs, image.manifest)
    ]
    return archive(
        [
            *blobs,
            ("index.json", json.dumps(index).encode()),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ]
    )


def saved(image: Image = IMAGE, names: Sequence[str] | None = ("thing:1",)) -> bytes:
    """What ``docker save`` makes."""
    config = image.blobs[0].content
    layers = [(f"{number}/layer.tar", each) for number, each in enumerate(image.layers)]
    document = [
        {"Config": "config.json", "RepoTags": names, "Layers": [name for name, _ in layers]}
    ]
    return archive(
        [("config.json", config), *layers, ("manifest.json", json.dumps(document).encode())]
    )


async def imported(
    recorder: Recorder, data: bytes, store: kinds.ImageStore, **options: Any
) -> None:
    """Import an archive as a client that has more room than it needs."""
    async with opened(recorder, "archive") as stream:

        async def send() -> None:
            sent, room, seen = 0, 0, 1
            while sent < len(data):
                for each in stream.came[seen:]:
                    room += decode(kinds.WindowUpdate, each.value).update
                seen = len(stream.came)
                if not room:
                    await anyio.sleep(0.005)
                    continue
                piece = data[sent : sent + min(room, 32 << 10)]
                await stream.send(kinds.Data(data=piece))
                sent += len(piece)
                room -= len(piece)
            await stream.close()

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            source = kinds.ImageImportStream(stream="archive", **options)
            await transferred(recorder, source, store, progress=True)
            group.cancel_scope.cancel()


PREFIX = kinds.ImageReference(name="docker.io/library/thing", is_prefix=True, allow_overwrite=True)


@scenario("transfer: import of OCI's layout", generations=BOTH)
async def import_layout(recorder: Recorder) -> None:
    store = kinds.ImageStore(extra_references=[PREFIX])
    await imported(recorder, layout(**{"org.opencontainers.image.ref.name": "1"}), store)
    whole = layout(**{"io.containerd.image.name": "h.example/other:2"})
    await imported(recorder, whole, store)
    await imported(recorder, gzip.compress(layout()), kinds.ImageStore(name="index"))
    await stored(recorder)


@scenario("transfer: import of what docker save makes", generations=NEWER)
async def import_saved(recorder: Recorder) -> None:
    store = kinds.ImageStore(extra_references=[PREFIX])
    await imported(recorder, saved(), store)
    await imported(recorder, saved(names=None), store)
    digested = kinds.ImageReference(name="pre", is_prefix=True, add_digest=True)
    await imported(recorder, saved(), kinds.ImageStore(extra_references=[digested]))
    await stored(recorder)


@scenario("transfer: import and unpack", generations=NEWER)
async def import_and_unpack(recorder: Recorder) -> None:
    unpacks = [kinds.UnpackConfiguration(platform=here(), snapshotter="overlayfs")]
    store = kinds.ImageStore(extra_references=[PREFIX], platforms=[here()], unpacks=unpacks)
    await imported(recorder, saved(), store)
    await stored(recorder)
    await recorder.snapshots.list(snapshotter="overlayfs")


@scenario("transfer: import of what is no image", generations=BOTH)
async def import_bad(recorder: Recorder) -> None:
    store = kinds.ImageStore(extra_references=[PREFIX])
    for data in (
        b"",
        bytes(1024),
        archive([("a", b"b")]),
        archive([("oci-layout", b'{"imageLayoutVersion":"2.0.0"}')]),
        archive([("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]),
        archive([("manifest.json", b'[{"Config":"none"}]')]),
        archive([("manifest.json", b'[{"Config":"c","Layers":["none"]}]'), ("c", b"{}")]),
    ):
        await imported(recorder, data, store)
    await imported(recorder, layout(), kinds.ImageStore(name="x", platforms=[here("s390x")]))
    await recorder.images.list()


def bytes_of(stream: Stream) -> bytes:
    return b"".join(decode(kinds.Data, each.value).data for each in stream.came[1:])


async def exported(recorder: Recorder, name: str, source: kinds.ImageStore, **options: Any) -> None:
    """Export as a client that has room for all of it. containerd's streams go with their client."""
    async with opened(recorder, name) as stream:
        await stream.send(kinds.WindowUpdate(update=1 << 24))
        target = kinds.ImageExportStream(stream=name, **options)
        await transferred(recorder, source, target, progress=True)
        failed = recorder.lines[-1].startswith("progress {'event': 'Exporting'}")
        with anyio.move_on_after(0 if failed else 5):
            while not bytes_of(stream).endswith(bytes(1024)):
                await anyio.sleep(0.01)
        data = bytes_of(stream)
    if not data:
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        for entry in file:
            found = file.extractfile(entry)
            inner = found.read() if found else b""
            text = inner if entry.name.endswith((".json", "layout")) else len(inner)
            recorder.note(f"entry {entry.name} {entry.mode:o} {entry.mtime} {text!r}")


@scenario(generations=NEWER)
async def export(recorder: Recorder) -> None:
    async with registry(recorder) as found:
        name = "docker.io/library/thing:1"
        await transferred(recorder, at(found), kinds.ImageStore(name=name))
        await transferred(recorder, kinds.ImageStore(name=name), kinds.ImageStore(name="h/x:2"))
        both = kinds.ImageStore(name=name, extra_references=[kinds.ImageReference(name="h/x:2")])
        await exported(recorder, "one", both)
        await exported(
            recorder, "two", kinds.ImageStore(name=name), skip_compatibility_manifest=True
        )
        await exported(recorder, "three", kinds.ImageStore(name="none"))
        prefix = [kinds.ImageReference(name="h/x", is_prefix=True)]
        await exported(recorder, "four", kinds.ImageStore(name=name, extra_references=prefix))


@scenario("transfer: tag and export of what was imported", generations=BOTH)
async def imported_and_exported(recorder: Recorder) -> None:
    name = "docker.io/library/thing:1"
    data = layout(**{"org.opencontainers.image.ref.name": "1"})
    await imported(recorder, data, kinds.ImageStore(extra_references=[PREFIX]))
    await transferred(recorder, kinds.ImageStore(name=name), kinds.ImageStore(name="h/x:2"))
    await transferred(recorder, kinds.ImageStore(name="none"), kinds.ImageStore(name="y"))
    await stored(recorder)
    await exported(recorder, "one", kinds.ImageStore(name=name))
    await exported(recorder, "two", kinds.ImageStore(name="none"))


@scenario(generations=BOTH)
async def echo(recorder: Recorder) -> None:
    async with opened(recorder, "in") as there, opened(recorder, "out") as back:
        await back.send(kinds.WindowUpdate(update=1 << 20))
        for data in (b"one", b"", b"two" * 1000):
            await there.send(kinds.Data(data=data))
        await there.close()
        await transferred(
            recorder,
            kinds.ImageImportStream(stream="in"),
            kinds.ImageExportStream(stream="out"),
        )
        with anyio.move_on_after(5):
            while len(bytes_of(back)) < 3003:
                await anyio.sleep(0.01)
        recorder.note(f"{len(bytes_of(back))} bytes come back")


@scenario(generations=BOTH)
async def ends_that_do_not_go_together(recorder: Recorder) -> None:
    store, reference = kinds.ImageStore(name="x"), kinds.OciRegistry(reference="h.example/a:1")
    await transferred(recorder, reference, reference)
    await transferred(recorder, kinds.Progress(), store)
    await transferred(recorder, store, kinds.Data())
    await transferred(recorder, AnyMessage(type_url="foo.Bar"), store)
    await transferred(recorder, store, AnyMessage(type_url="foo.Bar"))
    hosted = AnyMessage(type_url="type.googleapis.com/containerd.types.transfer.ImageStore")
    await transferred(recorder, hosted, hosted)


@scenario(generations=BOTH)
async def streams_that_there_are_not(recorder: Recorder) -> None:
    store = kinds.ImageStore(name="x")
    await transferred(recorder, kinds.ImageImportStream(stream="none"), store)
    await transferred(recorder, store, kinds.ImageExportStream(stream="none"))
    resolver = kinds.RegistryResolver(auth_stream="none")
    source = kinds.OciRegistry(reference="h.example/a:1", resolver=resolver)
    await transferred(recorder, source, store)
    request = transfer.TransferRequest(
        source=packed(store),
        destination=packed(store),
        options=transfer.TransferOptions(progress_stream="none"),
    )
    answer = transfer.TransferStub(recorder.channel).transfer(request)
    await recorder.call("Transfer with a progress stream that there is not", answer)


@scenario(generations=BOTH)
async def streams(recorder: Recorder) -> None:
    async with opened(recorder, "one") as one:
        recorder.note(f"{[each.type_url for each in one.came]}")
        async with opened(recorder, "one") as other:
            recorder.note(f"the same once more: {other.came} {other.how}")
    recorder.note(one.how or "goes on")
    async with opened(recorder, "x", packed(kinds.Data(data=b"x"))) as none:
        recorder.note(f"begun with data: {none.came} {none.how}")
    async with opened(recorder, "") as unnamed:
        recorder.note(f"without a name: {[each.type_url for each in unnamed.came]}")


@scenario("transfer: no namespace", generations=BOTH)
async def no_namespace(recorder: Recorder) -> None:
    async with recorder.within(None) as nowhere:
        await transferred(nowhere, kinds.ImageStore(name="x"), kinds.ImageStore(name="y"))
        source = kinds.OciRegistry(reference="127.0.0.1:1/a:1")
        await transferred(nowhere, source, kinds.ImageStore(name="x"))
        async with opened(nowhere, "one") as one:
            nowhere.note(f"{[each.type_url for each in one.came]}")
