"""Layers of the content store: unpacked, and made again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from harness.layers import LAYER, TIME, file, folder, link, symlink, tar, tree, variants

from taskd import digests, procfs
from taskd.content import ContentStore, Info
from taskd.diff.differ import UNCOMPRESSED, Differ
from taskd.diff.limits import Limits
from taskd.diff.media import is_compressed
from taskd.errors import NotFound, ResourceExhausted, Unavailable, Unimplemented, Unknown
from taskd.metadata import Database, Descriptor
from taskd.types import Mount

NAMESPACE = "test"


@pytest.fixture
def content(tmp_path: Path) -> Iterator[ContentStore]:
    with Database(tmp_path / "metadata.db") as database:
        yield ContentStore(database, tmp_path / "content")


@pytest.fixture
def differ(content: ContentStore, tmp_path: Path) -> Differ:
    return Differ(content, tmp_path / "place", Limits(max_size=10 << 20))


async def put(content: ContentStore, data: bytes, media_type: str = LAYER) -> Descriptor:
    digest = digests.of(data)
    async with content.writer(NAMESPACE, digest, 0, "") as writer:
        await writer.write(data)
        await writer.commit(0, "", {})
    return Descriptor(media_type, digest, len(data))


def bound(path: Path) -> list[Mount]:
    path.mkdir(exist_ok=True)
    return [Mount("bind", str(path), options=("rbind", "rw"))]


async def unpacked(content: ContentStore, namespace: str, digest: str) -> bytes:
    return b"".join([piece async for piece in content.read(namespace, digest)])


async def test_there_and_back(tmp_path: Path, content: ContentStore, differ: Differ) -> None:
    """A layer that is unpacked and made again is the same, in each form."""
    archive = tar(
        folder("d", mode=0o1777, uid=3),
        file("d/a", b"x" * 100_000, mode=0o4755),
        symlink("d/b", "a"),
        file("e", b"e"),
    )
    layers = []
    for kind, data in variants(archive).items():
        root = tmp_path / f"root{kind}"
        layer = await put(content, data, f"{LAYER}{kind}")
        applied = await differ.apply(NAMESPACE, layer, bound(root), sync=True)
        assert applied == Descriptor(LAYER, digests.of(archive), len(archive))
        media_type = f"{LAYER}{kind}"
        mounts = bound(tmp_path / "empty"), bound(root)
        made = await differ.diff(NAMESPACE, *mounts, media_type=media_type, labels={"a": "b"})
        assert made.media_type == media_type
        info = content.info(NAMESPACE, made.digest)
        assert info.size == made.size
        uncompressed = info.labels.get(UNCOMPRESSED, made.digest)
        assert (UNCOMPRESSED in info.labels) == bool(kind)
        assert info.labels["a"] == "b"
        other = tmp_path / f"other{kind}"
        applied = await differ.apply(NAMESPACE, made, bound(other))
        assert applied.digest == uncompressed
        assert tree(other)[1:] == tree(root)[1:]
        layers.append(uncompressed)
    assert len(set(layers)) == 1
    assert content.info(NAMESPACE, (await differ.diff(NAMESPACE, *mounts)).digest).labels


async def test_changes(tmp_path: Path, content: ContentStore, differ: Differ) -> None:
    """Everything that there can be between two trees comes out right when it is applied."""
    first = tar(
        *(folder(name) for name in ("kept", "gone", "gone/in", "changed", "to-file")),
        *(file(f"{name}/a", b"a") for name in ("kept", "gone/in", "changed", "to-file")),
        *(file(name, name.encode()) for name in ("to-folder", "same", "other", "owner", "mode")),
        file("time", b"t"),
        file("content", b"one"),
        symlink("link", "same"),
        file("hard", b"hard"),
        link("hard2", "hard"),
        file("more", b"more"),
    )
    second = tar(
        file(".wh.gone"),
        folder("changed", mode=0o700),
        file("to-file", b"now"),
        folder("to-folder"),
        file("to-folder/b", b"b"),
        file("owner", b"owner", uid=5),
        file("mode", b"mode", mode=0o4711),
        file("time", b"t", mtime=TIME + 1),
        file("content", b"two"),
        symlink("link", "other"),
        link("more2", "more"),
        file("kept/new", b"new"),
        file("kept-not", b"after it"),
    )
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for root, layers in ((lower, [first]), (upper, [first, second])):
        for layer in layers:
            with_it = await put_once(content, layer)
            await differ.apply(NAMESPACE, with_it, bound(root))
    # Times of folders that nobody named are those of now.
    for root in (lower, upper):
        os.utime(root / "kept", (TIME, TIME))
    (upper / "socket").touch()
    os.mknod(upper / "fifo", stat.S_IFIFO | 0o600)
    made = await differ.diff(NAMESPACE, bound(lower), bound(upper), media_type=LAYER)
    await differ.apply(NAMESPACE, made, bound(lower))
    assert tree(lower)[1:] == tree(upper)[1:]
    again = await differ.diff(NAMESPACE, bound(upper), bound(upper), media_type=LAYER)
    assert again.size == 1024


async def put_once(content: ContentStore, data: bytes) -> Descriptor:
    digest = digests.of(data)
    try:
        content.info(NAMESPACE, digest)
    except NotFound:
        return await put(content, data)
    return Descriptor(LAYER, digest, len(data))


async def test_a_layer_is_made_the_same_again(
    tmp_path: Path, content: ContentStore, differ: Differ
) -> None:
    root, empty = tmp_path / "root", tmp_path / "empty"
    archive = tar(folder("d"), *(file(f"d/{name}", b"x") for name in "zyxwv"))
    await differ.apply(NAMESPACE, await put(content, archive), bound(root))
    epoch = 1_000_000_000
    for media_type in (LAYER, f"{LAYER}+gzip", f"{LAYER}+zstd"):
        found = {
            (
                await differ.diff(
                    NAMESPACE,
                    bound(empty),
                    bound(root),
                    media_type=media_type,
                    latest=epoch * 10**9,
                )
            ).digest
            for _ in range(2)
        }
        assert len(found) == 1
    (digest,) = found
    other = tmp_path / "other"
    await differ.apply(NAMESPACE, Descriptor(f"{LAYER}+zstd", digest), bound(other))
    assert (other / "d/z").stat().st_mtime == epoch
    assert await content.statuses(NAMESPACE) == []


async def test_a_write_under_a_name(tmp_path: Path, content: ContentStore, differ: Differ) -> None:
    """What it had is thrown away; after a failure it stays, and one without a name goes."""
    one, other = bound(tmp_path / "one"), bound(tmp_path / "two")
    (tmp_path / "two/file").write_text("x")
    async with content.writer(NAMESPACE, "ref", 0, "") as writer:
        await writer.write(b"rubbish")
        with pytest.raises(Unavailable, match="ref"):
            await differ.diff(NAMESPACE, one, other, ref="ref")
    nowhere = [Mount("bind", "/nosuch", options=("rbind",))]
    with pytest.raises(Unknown, match="no such file or directory"):
        await differ.diff(NAMESPACE, nowhere, other, ref="ref")
    with pytest.raises(Unknown, match="no such file or directory"):
        await differ.diff(NAMESPACE, nowhere, other)
    (status,) = await content.statuses(NAMESPACE)
    assert (status.ref, status.offset) == ("ref", len(b"rubbish"))
    made = await differ.diff(NAMESPACE, one, other, ref="ref", media_type=LAYER)
    data = await unpacked(content, NAMESPACE, made.digest)
    assert data.startswith(b"file\0")
    assert await content.statuses(NAMESPACE) == []


async def test_a_blob_that_is_there(tmp_path: Path, content: ContentStore, differ: Differ) -> None:
    """Keeps its labels, and is told what is in it if it does not say so."""
    mounts = bound(tmp_path / "one"), bound(tmp_path / "two")
    made = await differ.diff(NAMESPACE, *mounts, labels={"a": "b"})
    tar_in_it = content.info(NAMESPACE, made.digest).labels[UNCOMPRESSED]
    await content.update(NAMESPACE, Info(made.digest))
    assert content.info(NAMESPACE, made.digest).labels == {}
    assert await differ.diff(NAMESPACE, *mounts, labels={"c": "d"}) == made
    assert content.info(NAMESPACE, made.digest).labels == {UNCOMPRESSED: tar_in_it}


async def test_what_cannot_be_done(tmp_path: Path, content: ContentStore, differ: Differ) -> None:
    root = bound(tmp_path / "root")
    missing = Descriptor(LAYER, digests.of(b"missing"))
    with pytest.raises(NotFound, match="^failed to get reader from content store: content digest"):
        await differ.apply(NAMESPACE, missing, root)
    layer = await put(content, tar(file("a")), "text/plain")
    words = "^failed to get stream processor for text/plain: no processor for media-type$"
    with pytest.raises(Unknown, match=words):
        await differ.apply(NAMESPACE, layer, root)
    for media_type in ("text/plain", "application/vnd.docker.image.rootfs.diff.tar.gzip"):
        with pytest.raises(Unimplemented, match=f"^unsupported diff media type: {media_type}: not"):
            await differ.diff(NAMESPACE, root, root, media_type=media_type)
    bomb = await put(content, variants(tar(file("zeros", bytes(20 << 20))))["+gzip"])
    with pytest.raises(ResourceExhausted):
        await differ.apply(NAMESPACE, Descriptor(f"{LAYER}+gzip", bomb.digest), root)
    assert {path.name for path in (tmp_path / "place").rglob("*")} == {"left", "right"}


async def test_several_at_once_and_one_that_is_cancelled(
    tmp_path: Path, content: ContentStore, differ: Differ
) -> None:
    layers = [
        await put(content, tar(*(file(f"{layer}-{number}", b"x" * 9000) for number in range(200))))
        for layer in range(4)
    ]
    async with anyio.create_task_group() as group:
        for number, layer in enumerate(layers):
            group.start_soon(differ.apply, NAMESPACE, layer, bound(tmp_path / str(number)))
    for number in range(4):
        assert len(list((tmp_path / str(number)).iterdir())) == 200
    with anyio.move_on_after(0.1) as scope:
        while True:
            await differ.apply(NAMESPACE, layers[0], bound(tmp_path / "cancelled"))
    assert scope.cancelled_caught
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [each for each in children if b"taskd.layers" in command(each)]
    assert not [each for each in procfs.mounts() if str(tmp_path) in str(each.point)]


def command(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


OCI = "application/vnd.oci.image.layer"
DOCKER = "application/vnd.docker.image.rootfs"


@pytest.mark.parametrize(
    ("media_type", "compressed"),
    [
        (f"{OCI}.v1.tar", False),
        (f"{OCI}.v1.tar+gzip", True),
        (f"{OCI}.v1.tar+zstd", True),
        (f"{OCI}.v1.tar+foo", False),
        (f"{OCI}.v1.tar+zzz+gzip", False),
        (f"{OCI}.nondistributable.v1.tar+gzip", True),
        (f"{DOCKER}.diff.tar", True),
        (f"{DOCKER}.diff.tar.gzip", True),
        (f"{DOCKER}.diff.tar.zstd", True),
        (f"{DOCKER}.foreign.diff.tar.gzip", True),
        (f"{DOCKER}.diff.tar.gzip+encrypted", False),
    ],
)
def test_media_types(media_type: str, compressed: bool) -> None:
    assert is_compressed(media_type) is compressed


@pytest.mark.parametrize(
    "media_type",
    ["", "a", f"{OCI}.v2.tar", f"{OCI}.v1.tar+gzip+encrypted", f"{DOCKER}.diff.tar.xz"],
)
def test_media_types_of_no_layer(media_type: str) -> None:
    with pytest.raises(Unknown, match="no processor for media-type$"):
        is_compressed(media_type)


async def test_ahead_of_what_is_below(
    tmp_path: Path, content: ContentStore, differ: Differ
) -> None:
    """A layer that names its folders is the same without those below; any other one waits."""
    lower, upper, work = (tmp_path / each for each in ("lower", "upper", "work"))
    bottom = tar(folder("d", mode=0o700, uid=5), file("d/gone"), folder("e"), file("e/gone"))
    await differ.apply(NAMESPACE, await put(content, bottom), bound(lower))
    whole = [folder("d", mode=0o750, uid=7), file("d/a", b"a"), file("d/.wh.gone")]
    whole += [file(".wh.e"), folder("f"), file("f/.wh..wh..opq"), link("f/b", "d/a")]
    for each in (upper, work):
        each.mkdir()
    options = (f"upperdir={upper}", f"lowerdir={lower}", f"workdir={work}")
    overlay = [Mount("overlay", "overlay", options=options)]
    layer = await put(content, tar(*whole))
    expected = await differ.apply(NAMESPACE, layer, overlay)
    assert await differ.apply_ahead(NAMESPACE, layer, bound(tmp_path / "ahead")) == expected
    assert tree(tmp_path / "ahead")[1:] == tree(upper)[1:]
    wanting = [file("e/b"), file("e/.wh.gone"), file("e/.wh..wh..opq"), link("e/c", "d/a")]
    for number, member in enumerate(wanting):
        one = await put(content, tar(*whole[:2], member))
        folder_ = tmp_path / f"wanting{number}"
        assert await differ.apply_ahead(NAMESPACE, one, bound(folder_)) is None
    broken = await put(content, tar(*whole)[:700])
    with pytest.raises(Unknown, match="unexpected EOF"):
        await differ.apply_ahead(NAMESPACE, broken, bound(tmp_path / "broken"))
