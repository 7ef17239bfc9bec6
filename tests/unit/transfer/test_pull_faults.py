"""What a registry may do to who pulls from it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator

import anyio
import pytest
from harness.fake_registry import FakeRegistry, Request, serving
from harness.real import need
from harness.registry import Blob, Image, layer
from harness.transfers import NAMESPACE, Parts

from taskd.content import ContentStore
from taskd.errors import FailedPrecondition, InvalidArgument, NotFound, TaskdError, Unknown
from taskd.registry import http
from taskd.registry.resolver import MAX_MANIFEST
from taskd.transfer import fetching
from taskd.transfer.service import RegistryImage
from taskd.transfer.store import Store

IMAGE = Image((layer({"large": os.urandom(3 << 20)}), layer({"small": b"x"})))
LARGE = IMAGE.blobs[1]


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving(IMAGE) as found:
        yield found


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as long as in earnest."""
    monkeypatch.setattr(http, "PAUSE", 0.001)
    monkeypatch.setattr(http, "MAX_WAIT", 0.01)
    monkeypatch.setattr(fetching, "_WORTH_IT", 1 << 18)
    monkeypatch.setattr(fetching, "_PAUSE", 0.001)


def large(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith(LARGE.digest)


async def pulled(parts: Parts, registry: FakeRegistry) -> None:
    """The pull succeeds, and nothing is left but the image."""
    registry.handlers.clear()
    await parts.pull(registry.name())
    assert parts.images.get(NAMESPACE, registry.name()).target.digest == IMAGE.manifest.digest
    assert await parts.digests() == {IMAGE.manifest.digest, *(b.digest for b in IMAGE.blobs)}
    assert await parts.left() == []
    assert len(parts.files()) == 4


async def fails(
    parts: Parts,
    registry: FakeRegistry,
    kind: type[TaskdError],
    words: str,
    *,
    seconds: float = http.ANSWER_SECONDS,
) -> None:
    """The pull fails, leaves nothing, and succeeds once the registry is in order.

    An answer is waited for as long as `seconds`, while it fails.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(http, "ANSWER_SECONDS", seconds)
        patched.setattr(http, "CONNECT_SECONDS", seconds)
        with anyio.fail_after(60), pytest.raises(kind, match=words):
            await parts.pull(registry.name())
    with pytest.raises(NotFound):
        parts.images.get(NAMESPACE, registry.name())
    assert await parts.left() == []
    assert await parts.digests() == set()
    assert parts.files() == []
    await pulled(parts, registry)


async def test_nothing_wrong(parts: Parts, registry: FakeRegistry) -> None:
    await pulled(parts, registry)
    before = len(registry.requests)
    await parts.pull(registry.name())
    assert [each.method for each in registry.requests[before:]] == ["HEAD"]


async def test_resets_in_the_middle_are_gone_on_from(parts: Parts, registry: FakeRegistry) -> None:
    offsets = []

    async def reset(request: Request) -> bool:
        if not large(request) or request.offset + (1 << 20) >= len(LARGE.content):
            return False
        offsets.append(request.offset)
        part = LARGE.content[request.offset : request.offset + (1 << 20)]
        status = 206 if request.offset else 200
        await request.answer(status, part, length=len(LARGE.content) - request.offset)
        request.writer.transport.abort() if len(offsets) % 2 else request.writer.close()
        return True

    registry.handlers.append(reset)
    await parts.pull(registry.name())
    assert offsets[0] == 0
    assert len(offsets) > 2
    assert offsets == sorted(set(offsets))
    await pulled(parts, registry)


async def test_a_registry_that_knows_no_ranges(parts: Parts, registry: FakeRegistry) -> None:
    async def whole(request: Request) -> bool:
        if not large(request):
            return False
        if registry.asked["GET", LARGE.digest] == 1:
            await request.answer(200, LARGE.content[:1000], length=len(LARGE.content))
            request.writer.close()
        else:
            await request.answer(200, LARGE.content)
        return True

    registry.handlers.append(whole)
    await parts.pull(registry.name())
    await pulled(parts, registry)


async def test_another_range(parts: Parts, registry: FakeRegistry) -> None:
    async def other(request: Request) -> bool:
        if large(request) and not request.offset:
            await request.answer(200, LARGE.content[:1000], length=len(LARGE.content))
            request.writer.close()
            return True
        if large(request):
            await request.answer(206, LARGE.content[5:], Content_Range="bytes 5-9/10")
            return True
        return False

    registry.handlers.append(other)
    await fails(parts, registry, Unknown, "unhandled content range in response: bytes 5-9/10")


async def test_too_little_again_and_again(parts: Parts, registry: FakeRegistry) -> None:
    async def little(request: Request) -> bool:
        if large(request):
            await request.answer(200, b"")
        return large(request)

    registry.handlers.append(little)
    await fails(parts, registry, Unknown, "short read: expected .* got 0: unexpected EOF")
    assert registry.asked["GET", LARGE.digest] == 6


@pytest.mark.parametrize("length", [None, 10**15])
async def test_too_much(parts: Parts, registry: FakeRegistry, length: int | None) -> None:
    async def much(request: Request) -> bool:
        if large(request):
            await request.answer(200, LARGE.content + b"x", length=length)
        return large(request)

    registry.handlers.append(much)
    await fails(parts, registry, FailedPrecondition, "failed size validation")


async def test_without_an_end(parts: Parts, registry: FakeRegistry) -> None:
    async def endless(request: Request) -> bool:
        if large(request):
            request.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                request.writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                await request.writer.drain()
        return False

    registry.handlers.append(endless)
    await fails(parts, registry, FailedPrecondition, "failed size validation")


async def test_other_bytes(parts: Parts, registry: FakeRegistry) -> None:
    async def other(request: Request) -> bool:
        if large(request):
            await request.answer(200, bytes(len(LARGE.content)))
        return large(request)

    registry.handlers.append(other)
    words = f'failed commit on ref "layer-{LARGE.digest}": unexpected commit digest'
    await fails(parts, registry, FailedPrecondition, words)


@pytest.mark.parametrize("sent", [0, 1000])
async def test_silence_in_the_middle(parts: Parts, registry: FakeRegistry, sent: int) -> None:
    async def silent(request: Request) -> bool:
        if large(request):
            await request.answer(200, LARGE.content[:sent], length=len(LARGE.content))
            await asyncio.sleep(30)
        return False

    registry.handlers.append(silent)
    words = "nothing came for too long|unexpected EOF|too long"
    await fails(parts, registry, Unknown, words, seconds=1.0)


async def test_silence_instead_of_an_answer(parts: Parts, registry: FakeRegistry) -> None:
    async def silent(request: Request) -> bool:
        if request.method == "HEAD":
            await asyncio.sleep(30)
        return False

    registry.handlers.append(silent)
    words = "failed to resolve image: failed to do request: Head"
    await fails(parts, registry, Unknown, words, seconds=1.0)


async def test_nobody_there(parts: Parts, registry: FakeRegistry) -> None:
    async with serving(IMAGE) as gone:
        pass
    with pytest.raises(Unknown, match=r"Head .* dial tcp 127.0.0.1:\d+: "):
        await parts.pull(gone.name())
    assert await parts.left() == []


async def test_what_is_no_http(parts: Parts, registry: FakeRegistry) -> None:
    async def noise(request: Request) -> bool:
        request.writer.write(os.urandom(1000) + b"\r\n\r\n")
        await request.writer.drain()
        request.writer.close()
        return True

    registry.handlers.append(noise)
    await fails(parts, registry, Unknown, "failed to do request")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_busy_for_once(parts: Parts, registry: FakeRegistry, status: int) -> None:
    async def busy(request: Request) -> bool:
        name = request.path.rpartition("/")[2]
        if registry.asked[request.method, name] > 1:
            return False
        await request.answer(status, Retry_After="3600")
        return True

    registry.handlers.append(busy)
    await parts.pull(registry.name())
    await pulled(parts, registry)


async def test_busy_for_ever(parts: Parts, registry: FakeRegistry) -> None:
    async def busy(request: Request) -> bool:
        errors = [{"code": "TOOMANYREQUESTS", "message": "slow down"}]
        if request.method == "GET":
            await request.answer(429, json.dumps({"errors": errors}).encode())
        return request.method == "GET"

    registry.handlers.append(busy)
    await fails(parts, registry, Unknown, "429 Whatever\ntoomanyrequests: slow down")


async def test_an_error_without_an_end(parts: Parts, registry: FakeRegistry) -> None:
    async def endless(request: Request) -> bool:
        if large(request):
            await request.answer(403, b"x" * 200_000, length=10**12)
        return large(request)

    registry.handlers.append(endless)
    await fails(parts, registry, Unknown, "unexpected status from GET request to .*: 403")


async def test_not_there(parts: Parts, registry: FakeRegistry) -> None:
    with pytest.raises(NotFound, match="failed to resolve image: .*/a/b:other: not found"):
        await parts.pull(registry.name("a/b:other"))
    with pytest.raises(Unknown, match="object required"):
        await parts.pull(registry.name("a/b"))
    with pytest.raises(Unknown, match="invalid checksum digest"):
        await parts.pull(registry.name("a/b@sha256:1"))


async def test_a_layer_that_is_not_there(parts: Parts, registry: FakeRegistry) -> None:
    registry.image = Image(IMAGE.layers)

    async def absent(request: Request) -> bool:
        if large(request):
            await request.answer(404)
        return large(request)

    registry.handlers.append(absent)
    await fails(parts, registry, NotFound, "could not fetch content descriptor")


async def test_a_manifest_that_is_too_large(parts: Parts, registry: FakeRegistry) -> None:
    async def much(request: Request) -> bool:
        if "/manifests/" in request.path:
            await request.answer(
                200,
                length=MAX_MANIFEST + 1,
                Docker_Content_Digest=IMAGE.manifest.digest,
                Content_Type=IMAGE.manifest.media_type,
            )
        return "/manifests/" in request.path

    registry.handlers.append(much)
    await fails(parts, registry, NotFound, f"rejecting {MAX_MANIFEST + 1} byte manifest")


async def test_a_registry_that_does_not_say_what_it_has(
    parts: Parts, registry: FakeRegistry
) -> None:
    async def plain(request: Request) -> bool:
        if request.path.endswith("/manifests/t"):
            status = 405 if request.method == "HEAD" else 200
            manifest = IMAGE.manifest
            await request.answer(status, manifest.content, Content_Type=manifest.media_type)
            return True
        return False

    registry.handlers.append(plain)
    await parts.pull(registry.name())
    await pulled(parts, registry)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"no JSON", "is no JSON"),
        (b"[]", "no object"),
        (b'{"config":{}}', "digest"),
        (b'{"config":{"digest":"sha256:../../etc"}}', "digest"),
        (b'{"manifests":[{}]}', "expected manifest but found index"),
        (b'{"mediaType":"application/vnd.oci.image.index.v1+json"}', "but found index"),
        (b'{"fsLayers":[1]}', "schema 1 not supported"),
        (b'{"layers":1}', "layers is no list"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
async def test_a_manifest_that_is_none(
    parts: Parts, registry: FakeRegistry, document: bytes, words: str
) -> None:
    manifest = Blob(IMAGE.manifest.media_type, document)

    async def broken(request: Request) -> bool:
        if "/manifests/" in request.path:
            await request.answer(
                200,
                document,
                Docker_Content_Digest=manifest.digest,
                Content_Type=manifest.media_type,
            )
        return "/manifests/" in request.path

    registry.handlers.append(broken)
    await fails(parts, registry, InvalidArgument, words)


async def test_a_digest_that_is_none(parts: Parts, registry: FakeRegistry) -> None:
    async def lying(request: Request) -> bool:
        await request.answer(200, b"x", Docker_Content_Digest="sha256:../../../etc/passwd")
        return True

    registry.handlers.append(lying)
    await fails(parts, registry, Unknown, "in header not a valid digest")


async def test_redirects_without_an_end(parts: Parts, registry: FakeRegistry) -> None:
    async def around(request: Request) -> bool:
        await request.answer(307, Location=request.path)
        return True

    registry.handlers.append(around)
    await fails(parts, registry, Unknown, "failed to do request")
    assert registry.asked["HEAD", "t"] < 20


async def test_a_redirect_to_another_host_shows_it_nothing(
    parts: Parts, registry: FakeRegistry
) -> None:
    async with serving(IMAGE) as other:

        async def elsewhere(request: Request) -> bool:
            if "authorization" not in request.headers:
                await request.answer(401, WWW_Authenticate='Basic realm="r"')
            elif "/blobs/" in request.path:
                await request.answer(307, Location=f"http://{other.host}{request.path}")
            else:
                return False
            return True

        registry.handlers.append(elsewhere)
        await parts.pull_as(registry.name(), "u", "p")
        assert other.requests
        assert not any("authorization" in each.headers for each in other.requests)
    await pulled(parts, registry)


async def test_a_place_that_a_manifest_names_sees_nothing_of_the_client(
    parts: Parts, registry: FakeRegistry
) -> None:
    async with serving(IMAGE) as other:
        config, *layers = (blob.descriptor() for blob in IMAGE.blobs)
        layers[0]["urls"] = ["ftp://nowhere", f"http://{other.host}/x/{LARGE.digest}"]
        document = {"schemaVersion": 2, "config": config, "layers": layers}
        manifest = Blob(IMAGE.manifest.media_type, json.dumps(document).encode())

        async def named(request: Request) -> bool:
            if "/manifests/" in request.path:
                await request.answer(
                    200,
                    manifest.content,
                    Docker_Content_Digest=manifest.digest,
                    Content_Type=manifest.media_type,
                )
            return "/manifests/" in request.path

        registry.handlers.append(named)
        secret = {"Authorization": "Bearer secret", "X-Own": "secret"}
        source = RegistryImage(registry.name(), default_scheme="http", headers=secret)
        await parts.transfers().pull(source, Store(registry.name()), parts.caller())
        (request,) = other.requests
        assert "secret" not in str(request.headers)
        assert all("secret" in str(each.headers) for each in registry.requests)
        assert registry.asked["GET", LARGE.digest] == 0


async def test_cancelled_in_the_middle(parts: Parts, registry: FakeRegistry) -> None:
    sent = anyio.Event()

    async def slow(request: Request) -> bool:
        if large(request):
            await request.answer(200, LARGE.content[: 2 << 20], length=len(LARGE.content))
            sent.set()
            await asyncio.sleep(30)
        return False

    registry.handlers.append(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(parts.pull, registry.name())
        await sent.wait()
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert await parts.left() == []
    assert parts.files() == []
    await pulled(parts, registry)


async def test_a_full_disk(parts: Parts, registry: FakeRegistry) -> None:
    need("mount", "umount")
    folder, whole = parts.folder / "content", parts.content
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", folder], check=True)
    try:
        parts.use(ContentStore(parts.database, folder))
        with pytest.raises(Unknown, match="no space left on device"):
            await parts.pull(registry.name())
        assert registry.asked["GET", LARGE.digest] == 1  # it is not to blame
        assert await parts.left() == []
        assert parts.files() == []
    finally:
        subprocess.run(["umount", folder], check=True)
        parts.use(whole)
    await pulled(parts, registry)
