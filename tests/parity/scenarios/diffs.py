"""The diff service: layers onto folders and overlays, and layers made of what differs."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.layers import (
    LAYER,
    TIME,
    device,
    fifo,
    file,
    folder,
    link,
    symlink,
    tar,
    tree,
    variants,
)
from parity.recorder import Recorder
from parity.scenarios import Play, scenario

from taskd import digests
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.diff import v1 as diff
from taskd.proto.containerd.services.snapshots import v1 as snapshots
from taskd.proto.containerd.types import Descriptor, Mount
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import Timestamp

GZIP, ZSTD = f"{LAYER}+gzip", f"{LAYER}+zstd"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
NEWER = ("1.7", "2")
CAPABILITY = (b"\1\0\0\2\0\x20" + bytes(14)).decode("latin-1")
GNU, USTAR, PAX = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT


def xattr(name: str, value: str) -> dict[str, Any]:
    return {"pax_headers": {f"SCHILY.xattr.{name}": value}}


# What there is in a layer, one on top of the other.
LAYERS: dict[str, list[bytes]] = {
    "kinds of files": [
        tar(
            folder("d", mode=0o1777, uid=3, gid=4),
            file("d/a", b"one", mode=0o640, uid=1000, gid=1001),
            symlink("d/s", "../nowhere", uid=7, gid=8),
            link("d/l", "d/a", mode=0o600),
            device("d/null", 1, 3, mode=0o666),
            device("d/disk", 7, 300, block=True, mode=0o660, gid=6),
            fifo("d/fifo", mode=0o1622),
        )
    ],
    "modes": [tar(*(file(f"f{mode:o}", mode=mode) for mode in (0, 0o7777, 0o4711, 0o2000, 0o777)))],
    "times": [
        tar(
            *(
                file(f"t{number}", mtime=TIME, pax_headers={"mtime": when})
                for number, when in enumerate(
                    ("1.5", "1.123456789", "-5", "-5.5", "9223372037", "1234567890123", "0", "7.")
                )
            ),
            file("a", pax_headers={"atime": "1600000000.25"}),
            folder("d", mtime=5),
            file("d/later"),
        )
    ],
    "attributes": [
        tar(
            file("capable", mode=0o4755, **xattr("security.capability", CAPABILITY)),
            file("user", **xattr("user.x", "y")),
            file("trusted", **xattr("trusted.x", "y")),
            file("nosuch", **xattr("nosuch.x", "y")),
            folder("d", **xattr("user.x", "")),
            symlink("s", "capable", **xattr("user.x", "y")),
            fifo("fifo", **xattr("user.x", "y")),
        )
    ],
    "large owners": [tar(file("a", uid=1 << 31, gid=(1 << 32) - 2), file("b", uid=2_000_000))],
    "whiteouts": [
        tar(folder("d"), file("d/a"), file("d/b"), folder("e"), file("e/a"), file("f")),
        tar(folder("d"), file("d/.wh.a", uid=5, gid=6), file(".wh.e"), file(".wh.nothing")),
    ],
    "a whiteout in a folder that is not there": [tar(file("made/on/.wh.way"))],
    "whiteouts that are folders and links": [
        tar(file("a"), file("b"), file("c")),
        tar(folder(".wh.a"), symlink(".wh.b", "x"), file(".wh.c", b"data")),
    ],
    "an opaque folder": [
        tar(folder("d"), file("d/a"), folder("d/e"), file("d/e/b"), file("f")),
        tar(folder("d"), file("d/.wh..wh..opq"), file("d/new"), file("d/e/new")),
    ],
    "an opaque folder whose marker is last": [
        tar(folder("d"), file("d/a"), folder("d/e"), file("d/e/b")),
        tar(folder("d"), file("d/new"), folder("d/e"), file("d/e/new"), file("d/.wh..wh..opq")),
    ],
    "an opaque root": [tar(file("a"), file("b")), tar(file("b", b"b"), file(".wh..wh..opq"))],
    "an opaque folder through a link": [
        tar(folder("d"), file("d/a"), symlink("l", "d")),
        tar(file("l/b"), file("d/.wh..wh..opq")),
    ],
    "other kinds than before": [
        tar(file("a", b"old"), folder("b"), file("b/in"), symlink("c", "b"), fifo("e"), file("f")),
        tar(
            folder("a"), file("b", b"new"), folder("c"), file("c/in"), symlink("e", "a"), fifo("f")
        ),
    ],
    "a folder again": [
        tar(folder("d", mode=0o700, uid=1, **xattr("user.x", "y")), file("d/a")),
        tar(folder("d", mode=0o2755, uid=2, mtime=9)),
    ],
    "twice in one layer": [tar(file("a", b"1"), folder("a"), file("a/b"), file("a", b"2"))],
    "long names of GNU": [tar(file("d" * 120 + "/" + "f" * 120, b"x"), format=GNU)],
    "long names of PAX": [tar(file("d" * 120 + "/" + "é" * 60, b"x"), symlink("l", "t" * 200))],
    "long names of ustar": [tar(file("d" * 90 + "/" + "f" * 90, b"x"), format=USTAR)],
    "names that lead up": [
        tar(file("../a", b"1"), file("../../b", b"2"), file("c/../../d", b"3"), file("/e", b"4"))
    ],
    "names that are the root": [tar(folder("./", mode=0o700), folder("..", mode=0o711), file("/"))],
    "odd names": [tar(file("a//b"), file("./c/./d"), file("e/f/"), file("g/..h"), file(" "))],
    "links that lead up": [
        tar(
            symlink("l", "../../.."),
            file("l/a", b"1"),
            symlink("m", "/"),
            file("m/b", b"2"),
            symlink("n", "l/../m/c"),
            file("n/d", b"3"),
        )
    ],
    "links to nothing on the way": [
        tar(symlink("l", "/x/y"), file("l/a"), symlink("m", "l/../z"), file("m/b"))
    ],
    "a file over a link": [tar(file("a", b"old"), symlink("l", "a")), tar(file("l", b"new"))],
    "hard links": [
        tar(
            folder("d"),
            file("d/a", b"x"),
            symlink("s", "d"),
            symlink("t", "d/a"),
            link("b", "s/a"),
            link("c", "/d/a"),
            link("e", "../d/a"),
            link("f", "t"),
        )
    ],
    "hard links to an earlier layer": [
        tar(file("a", b"x", mode=0o600)),
        tar(link("b", "a", mode=0o644, uid=9)),
    ],
    "folders on the way": [
        tar(
            folder("d", mode=0o750, uid=5, gid=6, **xattr("user.x", "y")), folder("d/e", mode=0o705)
        ),
        tar(file("d/e/f/a")),
    ],
    "a global header": [
        tarfile.TarInfo("x").create_pax_global_header({"comment": "none", "path": "y"})
        + tar(file("a", b"1"))
    ],
    "no end": [tar(file("a", b"x" * 512))[:1024], tar(file("b"))[:1024]],
    "more after the end": [tar(file("a")) + b"more"],
    "nothing": [b"", tar()],
}


def _scenarios_of_layers() -> None:
    for name, layers in LAYERS.items():

        def onto_folder(layers: Sequence[bytes]) -> Play:
            async def play(r: Recorder) -> None:
                await onto(r, layers, [bound(r, "root")], {"root": r.folder / "root"})

            return play

        def onto_overlay(layers: Sequence[bytes]) -> Play:
            async def play(r: Recorder) -> None:
                folders: dict[str, Path] = {}
                for number, layer in enumerate(layers, 1):
                    folders[f"layer{number}"] = made(r, f"layer{number}")
                    lower = [folders[each] for each in reversed(list(folders)[:-1])]
                    mounts = [overlay(r, folders[f"layer{number}"], lower or [made(r, "empty")])]
                    await onto(r, [layer], mounts, folders)

            return play

        scenario(f"diffs: {name}", generations=NEWER)(onto_folder(layers))
        scenario(f"diffs: {name}, on overlay", generations=NEWER)(onto_overlay(layers))


_scenarios_of_layers()


def made(r: Recorder, name: str) -> Path:
    path = r.folder / name
    path.mkdir(exist_ok=True, parents=True)
    return path


def bound(r: Recorder, name: str, *options: str) -> Mount:
    return Mount(type="bind", source=str(made(r, name)), options=list(options or ("rbind", "rw")))


def overlay(r: Recorder, upper: Path, lower: Sequence[Path]) -> Mount:
    work = made(r, f"work/{upper.name}")
    options = [f"workdir={work}", f"upperdir={upper}", f"lowerdir={':'.join(map(str, lower))}"]
    return Mount(type="overlay", source="overlay", options=[*options, "index=off"])


async def put(r: Recorder, data: bytes) -> str:
    """Have a blob, which is not noted down."""
    digest = digests.of(data)
    request = content.WriteContentRequest(
        action=content.WriteAction.COMMIT, ref=os.urandom(8).hex(), data=data, expected=digest
    )
    try:
        async for _ in r.stub(content.ContentStub).write([request]):
            pass
    except Exception as error:
        assert "already exists" in str(error)
    return digest


async def apply(
    r: Recorder, layer: bytes, mounts: Sequence[Mount], media_type: str = GZIP, **fields: Any
) -> None:
    diff = Descriptor(media_type=media_type, digest=await put(r, layer), size=len(layer))
    await r.diff.apply(diff=diff, mounts=list(mounts), **fields)


async def onto(
    r: Recorder, layers: Sequence[bytes], mounts: Sequence[Mount], folders: dict[str, Path]
) -> None:
    for layer in layers:
        await apply(r, layer, mounts)
    for name, path in folders.items():
        r.note("\n    ".join([f"in {name}", *tree(path)]))


# What is wrong with a layer.

ONE = tar(file("a", b"x" * 3000))
RANDOM = tar(file("a", os.urandom(100_000)))
BROKEN: dict[str, bytes] = {
    "no archive": b"no archive" * 100,
    "short": b"short",
    "a damaged header": ONE[:30] + b"?" + ONE[31:],
    "ends in a header": ONE[:300],
    "ends in a file": ONE[:2000],
    "ends in padding": ONE[: 512 + 3010],
    "something after one block of zeros": ONE[:3584] + bytes(512) + b"x" * 512,
    "a part of a block after one block of zeros": ONE[:3584] + bytes(512) + b"x" * 100,
    "gzip that ends early": variants(RANDOM)["+gzip"][:50_000],
    "gzip's beginning": variants(ONE)["+gzip"][:4],
    "a wrong checksum of gzip": variants(ONE)["+gzip"][:-5] + b"?" + variants(ONE)["+gzip"][-4:],
    "bytes after gzip": variants(ONE)["+gzip"] + b"more than ten",
    "zeros after gzip": variants(ONE)["+gzip"] + bytes(100),
    "zstd that ends early": variants(RANDOM)["+zstd"][:50_000],
    "an unknown type": tar(file("a", type=b"Z")),
    "contiguous": tar(file("a", type=b"7")),
    "a whiteout of nothing": tar(file("d/.wh.")),
    "a whiteout of its folder": tar(file("d/.wh..")),
    "a whiteout of what is above": tar(file("d/.wh...")),
    "a whiteout of what is there": tar(file("a"), file(".wh.a")),
    "a file for a folder": tar(file("a"), file("a/b")),
    "a name that is too long": tar(file("x" * 300)),
    "a long name without end": tar(file("x", b"n" * (1 << 20) + b"n", type=b"L")),
    "a link to what is not there": tar(link("a", "b")),
    "a link to itself": tar(file("a"), link("a", "a")),
    "a link to a folder": tar(folder("a"), link("b", "a")),
    "a link that leads out": tar(link("a", "../../../../../../../../../etc/passwd")),
    "a folder that is gone in the end": tar(folder("d"), file(".wh.d")),
    "a bad number": ONE[:100] + b"99999999" + ONE[108:],
    "records that are none": tar(file("p", b"12 no record\n", type=b"x"), file("a")),
    "a size below zero": tar(file("a", pax_headers={"size": "-1"})),
    "a size that is too large": tar(file("a", pax_headers={"size": "99999999999"})),
}


@scenario(generations=NEWER)
async def broken(r: Recorder) -> None:
    for name, layer in BROKEN.items():
        r.note(name)
        root = f"broken/{name}"
        await apply(r, layer, [bound(r, root)])


@scenario(generations=NEWER)
async def broken_on_overlay(r: Recorder) -> None:
    for name in ("a whiteout of what is there", "a file for a folder", "ends in a file"):
        upper = made(r, f"overlay/{name}")
        await apply(r, BROKEN[name], [overlay(r, upper, [made(r, "empty")])])


# Media types, and what is said of a layer.


@scenario(generations=NEWER)
async def media_types(r: Recorder) -> None:
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    for media_type in (
        *(LAYER, GZIP, ZSTD, f"{LAYER}+foo", f"{LAYER}+", f"{GZIP}+encrypted", f"{LAYER}+x+gzip"),
        *(foreign, f"{foreign}+gzip", DOCKER, f"{DOCKER}.gzip"),
        *(f"{DOCKER}.gzip+encrypted", DOCKER.replace("diff", "foreign.diff"), f"{DOCKER}.xz"),
        *("", "text/plain", "application/vnd.oci.image.layer.v2.tar"),
        "application/vnd.oci.image.config.v1+json",
    ):
        for layer in variants(tar(file("a", b"x" * 5000))).values():
            await apply(r, layer, [bound(r, "root")], media_type)


@scenario("diffs: media types: zstd of docker's", generations=("2",))
async def docker_zstd(r: Recorder) -> None:
    for layer in variants(tar(file("a", b"x" * 5000))).values():
        await apply(r, layer, [bound(r, "root")], f"{DOCKER}.zstd")


@scenario(generations=NEWER)
async def descriptors(r: Recorder) -> None:
    mounts = [bound(r, "root")]
    digest = await put(r, ONE)
    for sent in (
        Descriptor(media_type=LAYER, digest=digest, size=1),
        Descriptor(media_type=LAYER, digest=digest, size=-1),
        Descriptor(media_type=LAYER, digest=digest, annotations={"a": "b"}),
        Descriptor(media_type=LAYER, digest=digests.of(b"missing"), size=1),
        Descriptor(media_type="text/plain", digest=digests.of(b"missing"), size=1),
        Descriptor(digest=digest),
    ):
        await r.diff.apply(diff=sent, mounts=mounts)
    async with r.within("other") as other:
        await other.diff.apply(diff=Descriptor(media_type=LAYER, digest=digest), mounts=mounts)


@scenario(generations=NEWER)
async def several_members_and_frames(r: Recorder) -> None:
    for kind in ("+gzip", "+zstd"):
        halves = variants(ONE[:1000])[kind], variants(ONE[1000:])[kind]
        await apply(r, b"".join(halves), [bound(r, f"root{kind}")], f"{LAYER}{kind}")
    skipped = b"\x50\x2a\x4d\x18\5\0\0\0hello"
    await apply(r, skipped + variants(ONE)["+zstd"], [bound(r, "skipped")], ZSTD)


@scenario(generations=NEWER)
async def payloads_and_sync(r: Recorder) -> None:
    payload = AnyMessage(type_url="nosuch.Type", value=b"x")
    await apply(r, ONE, [bound(r, "root")], payloads={"nosuch": payload})
    await apply(r, ONE, [bound(r, "root")], sync_fs=True)
    await apply(r, ONE, [overlay(r, made(r, "upper"), [made(r, "lower")])], sync_fs=True)


@scenario(generations=NEWER)
async def mounts(r: Recorder) -> None:
    """Onto what else there may be."""
    nowhere = Mount(type="bind", source=str(r.folder / "nosuch"), options=["rbind"])
    await apply(r, ONE, [nowhere])
    await apply(r, ONE, [bound(r, "root", "rbind", "ro")])
    await apply(r, ONE, [Mount(type="nosuch", source="x")])
    lower, view = made(r, "lower"), made(r, "view")
    without_upper = [f"lowerdir={lower}:{view}"]
    await apply(r, ONE, [Mount(type="overlay", source="overlay", options=without_upper)])
    outer, inner = bound(r, "outer"), bound(r, "inner")
    made(r, "outer/d")
    inner.target = "d"
    await apply(r, tar(file("d/in", b"x"), file("out", b"y")), [outer, inner])
    inner.target = "../../d"
    await apply(r, tar(file("d/again", b"x")), [outer, inner])
    r.note("\n    ".join([*tree(r.folder / "outer"), *tree(r.folder / "inner")]))


@cache
def sparse(form: str) -> tuple[bytes, bytes]:
    """A file with holes, and an archive of it as GNU tar writes that."""
    with TemporaryDirectory() as name:
        hole = Path(name, "hole")
        with hole.open("wb") as out:
            for number in range(30):
                out.seek(number * 300_000)
                out.write(b"piece %d" % number)
            out.truncate(9_500_000)
        os.utime(hole, (TIME, TIME))
        command = ["tar", "-c", "--sparse", *form.split(), "hole"]
        done = subprocess.run(command, cwd=name, check=True, stdout=subprocess.PIPE)
        return hole.read_bytes(), done.stdout


@scenario(generations=NEWER)
async def sparse_files(r: Recorder) -> None:
    """Of PAX, and last of GNU."""
    for number, form in enumerate(
        (
            *(f"--format=pax --sparse-version={version}" for version in ("0.0", "0.1", "1.0")),
            "--format=gnu",
        )
    ):
        data, archive = sparse(form)
        await apply(r, archive, [bound(r, str(number))])
        found = r.folder / str(number) / "hole"
        r.note(f"{form}: the same: {found.exists() and found.read_bytes() == data}")


# Layers that are made of what differs.


def unpacked(root: Path, *layers: bytes) -> Path:
    """GNU tar does it; folders in which it makes something late get a time all the same."""
    root.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        command = ["tar", "-xp", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*"]
        subprocess.run(command, input=layer, cwd=root, check=True)
    for path in root.rglob("*"):
        if path.is_dir() and path.stat().st_mtime > TIME * 1.1:
            os.utime(path, (TIME, TIME))
    return root


async def difference(
    r: Recorder, left: Sequence[Mount], right: Sequence[Mount], **fields: Any
) -> None:
    """Diff, with what is in the tar; and of a compressed one what is said of it."""
    fields.setdefault("media_type", LAYER)
    answer = await r.diff.diff(left=list(left), right=list(right), **fields)
    if answer is None:
        return
    if answer.diff.media_type != LAYER:
        stub = r.stub(content.ContentStub)
        found = await stub.info(content.InfoRequest(digest=answer.diff.digest))
        r.note(f"labels {sorted(found.info.labels.items())}")
        return
    await r.content.info(digest=answer.diff.digest)
    data = b""
    request = content.ReadContentRequest(digest=answer.diff.digest)
    async for piece in r.stub(content.ContentStub).read(request):
        data += piece.data
    listed = subprocess.run(
        ["tar", "-tvv", "--full-time", "--numeric-owner", "--warning=no-timestamp"],
        input=data,
        stdout=subprocess.PIPE,
        check=True,
    )
    r.note("\n    ".join(["in it", *listed.stdout.decode(errors="replace").splitlines()]))


FIRST = tar(
    *(folder(name) for name in ("kept", "gone", "gone/in", "changed", "to-file", "to-file/in")),
    *(file(f"{name}/a", b"a") for name in ("kept", "gone/in", "changed", "to-file/in")),
    *(
        file(name, name.encode())
        for name in ("to-folder", "same", "other", "owner", "mode", "time")
    ),
    *(file(name, b"same time") for name in ("content", "gone-too", "a.b", "a-b", "a")),
    symlink("link", "same"),
    symlink("same-link", "same"),
)

# Each makes of FIRST something else.
SECOND: dict[str, bytes] = {
    "a new file": tar(folder("kept"), file("kept/new", b"new")),
    "new folders": tar(folder("x", uid=3), folder("x/y"), file("x/y/z"), file("x.y"), file("x-y")),
    "content": tar(file("content", b"SAME TIME")),
    "a time": tar(file("time", b"time", mtime=TIME + 1)),
    "a part of a second": tar(file("time", b"time", mtime=TIME + 0.5)),
    "an owner": tar(file("owner", b"owner", uid=5), folder("kept", gid=6)),
    "a mode": tar(file("mode", b"mode", mode=0o4711), folder("kept", mode=0o1700)),
    "a folder's time alone": tar(folder("kept", mtime=5)),
    "a link's target": tar(symlink("link", "other")),
    "a folder for a file": tar(folder("to-folder"), file("to-folder/in", b"x")),
    "a capability": tar(file("same", b"same", **xattr("security.capability", CAPABILITY))),
    "another attribute": tar(file("same", b"same", **xattr("user.x", "y"))),
    "devices": tar(device("null", 1, 3), device("disk", 8, 300, block=True), fifo("fifo")),
    "long names": tar(
        *(folder(name * times) for name, times in (("d", 90), ("e", 120))),
        file("d" * 90 + "/" + "f" * 90, b"x"),
        file("e" * 120 + "/" + "g" * 120, b"x"),
        symlink("l", "t" * 200),
        file("é", b"x"),
    ),
    "large owners": tar(file("large", b"x", uid=3_000_000, gid=1 << 31)),
    "times that do not fit": tar(file("early", mtime=-5.5), file("late", mtime=1 << 34)),
    "hard links": tar(folder("h"), file("h/1", b"x"), link("h/2", "h/1"), link("i", "h/1")),
    "a hard link to what was there": tar(link("linked", "same"), link("zlinked", "same")),
    "a large file": tar(file("large", bytes(range(256)) * 10_000)),
}


def _scenarios_of_changes() -> None:
    for name, layer in SECOND.items():

        def change(layer: bytes) -> Play:
            async def play(r: Recorder) -> None:
                unpacked(r.folder / "left", FIRST)
                unpacked(r.folder / "right", FIRST, layer)
                left, right = bound(r, "left"), bound(r, "right")
                await difference(r, [left], [right])
                await difference(r, [bound(r, "empty")], [right])

            return play

        scenario(f"diffs: changes: {name}", generations=NEWER)(change(layer))


_scenarios_of_changes()


@scenario("diffs: changes: what is gone", generations=("2",))
async def gone(r: Recorder) -> None:
    unpacked(r.folder / "left", FIRST)
    right = unpacked(r.folder / "right", FIRST)
    subprocess.run(
        ["rm", "-r", "gone", "to-file", "gone-too", "kept/a", "a-b"], cwd=right, check=True
    )
    (right / "to-file").write_bytes(b"x")
    for name in ("to-file", "kept"):
        os.utime(right / name, (TIME, TIME))
    mounts = [bound(r, "left")], [bound(r, "right")]
    await difference(r, *mounts)
    await difference(r, *mounts, source_date_epoch=Timestamp(seconds=TIME - 100))
    await difference(r, [bound(r, "right")], [bound(r, "empty")])


@scenario("diffs: changes: a hard link of three", generations=NEWER)
async def hard_link_of_three(r: Recorder) -> None:
    """One of them is changed: the others are told of, before it and after it."""
    three = tar(file("b", b"x"), link("a", "b"), link("c", "b"), file("d", b"alone"))
    unpacked(r.folder / "left", three)
    right = unpacked(r.folder / "right", three)
    (right / "e").hardlink_to(right / "b")
    os.chown(right / "b", 7, 7)
    await difference(r, [bound(r, "left")], [bound(r, "right")])
    (right / "f").hardlink_to(right / "d")
    await difference(r, [bound(r, "left")], [bound(r, "right")])


@scenario("diffs: changes: sockets and the time of the source", generations=NEWER)
async def sockets(r: Recorder) -> None:
    right = unpacked(r.folder / "right", tar(file("a", mtime=TIME + 10), file("b", mtime=3)))
    os.mknod(right / "socket", stat.S_IFSOCK | 0o600)
    mounts = [bound(r, "left")], [bound(r, "right")]
    await difference(r, *mounts)
    for seconds, nanos in ((TIME, 0), (TIME + 5, 999_999_999), (0, 0), (-7, 0)):
        await difference(r, *mounts, source_date_epoch=Timestamp(seconds=seconds, nanos=nanos))


@scenario("diffs: changes: on overlay", generations=NEWER)
async def on_overlay(r: Recorder) -> None:
    """The upper side is what is seen, whiteouts and all."""
    lower = unpacked(made(r, "lower"), tar(file("a", b"a"), file("b", b"b")))
    upper = unpacked(made(r, "upper"), tar(file("c", b"c"), file("b", b"B", mtime=TIME + 1)))
    mounts = [bound(r, "lower", "rbind", "ro")], [overlay(r, upper, [lower])]
    await difference(r, *mounts)
    await difference(r, [], mounts[1])
    await difference(r, mounts[0], mounts[0])
    volatile = overlay(r, upper, [lower])
    volatile.options.append("volatile")
    await difference(r, mounts[0], [volatile])


@scenario(generations=NEWER)
async def compressed(r: Recorder) -> None:
    """Whose bytes are each library's own; what is in them is not."""
    unpacked(r.folder / "right", FIRST)
    mounts = [bound(r, "left")], [bound(r, "right")]
    for media_type in (GZIP, ""):
        await difference(r, *mounts, media_type=media_type, labels={"a": "b"})
        await difference(r, *mounts, media_type=media_type, labels={"c": "d"})
    for media_type in (f"{DOCKER}.gzip", DOCKER, "text/plain", f"{LAYER}+foo", f"{GZIP} "):
        await difference(r, *mounts, media_type=media_type)


@scenario("diffs: compressed with zstd", generations=("2",))
async def compressed_with_zstd(r: Recorder) -> None:
    unpacked(r.folder / "right", FIRST)
    mounts = [bound(r, "left")], [bound(r, "right")]
    await difference(r, *mounts, media_type=ZSTD, labels={"a": "b"})
    await difference(r, *mounts, media_type=ZSTD, labels={"c": "d"})


@scenario(generations=NEWER)
async def labels(r: Recorder) -> None:
    unpacked(r.folder / "right", tar(file("a", b"x")))
    mounts = [bound(r, "left")], [bound(r, "right")]
    await difference(r, *mounts, labels={"": "x"})
    await difference(r, *mounts, labels={"a": "x" * 5000})
    await difference(r, *mounts, labels={"a": "b", "containerd.io/uncompressed": "mine"})
    await difference(r, *mounts, labels={"c": "d"})
    await r.content.list_statuses(filters=[])


@scenario(generations=NEWER)
async def references(r: Recorder) -> None:
    unpacked(r.folder / "right", tar(file("a", b"x")))
    mounts = [bound(r, "left")], [bound(r, "right")]
    rubbish = content.WriteContentRequest(
        action=content.WriteAction.WRITE, ref="ref", data=b"rubbish"
    )
    await r.content.write([rubbish])
    nowhere = Mount(type="bind", source=str(r.folder / "nosuch"), options=["rbind"])
    await difference(r, [nowhere], mounts[1], ref="ref")
    await r.content.status(ref="ref")
    await difference(r, *mounts, ref="ref")
    await difference(r, *mounts, ref="ref")
    await r.content.list_statuses(filters=[])
    await difference(r, mounts[0], [nowhere])
    await difference(r, mounts[0], [nowhere], ref="other")
    await r.content.list_statuses(filters=[])


@scenario(generations=NEWER)
async def leases(r: Recorder) -> None:
    unpacked(r.folder / "right", tar(file("a", b"x")))
    mounts = [bound(r, "left")], [bound(r, "right")]
    await r.leases.create(id="l")
    under = {"containerd-lease": "l"}
    request = {"left": mounts[0], "right": mounts[1], "media_type": LAYER}
    await r.diff.diff(**request, metadata=under)
    await r.leases.list_resources(id="l")
    await r.diff.diff(**request, metadata={"containerd-lease": "nosuch"})


def _scenarios_of_snapshots() -> None:
    for snapshotter in ("overlayfs", "native"):

        def through(snapshotter: str) -> Play:
            async def play(r: Recorder) -> None:
                stub = r.stub(snapshots.SnapshotsStub)
                parent = ""
                for number, layer in enumerate([*LAYERS["whiteouts"], FIRST]):
                    prepared = snapshots.PrepareSnapshotRequest(
                        snapshotter=snapshotter, key=f"active{number}", parent=parent
                    )
                    mounts = (await stub.prepare(prepared)).mounts
                    await apply(r, layer, mounts)
                    viewed = snapshots.ViewSnapshotRequest(
                        snapshotter=snapshotter, key=f"view{number}", parent=parent
                    )
                    below = (await stub.view(viewed)).mounts
                    # Its folders are those of this daemon, with numbers of its own.
                    request = diff.DiffRequest(left=below, right=mounts, media_type=LAYER)
                    made = await r.stub(diff.DiffStub).diff(request)
                    r.note(f"layer {number}: {r.shown(made)}")
                    committed = snapshots.CommitSnapshotRequest(
                        snapshotter=snapshotter, key=f"active{number}", name=f"layer{number}"
                    )
                    await stub.commit(committed)
                    parent = f"layer{number}"

            return play

        scenario(f"diffs: through snapshots, {snapshotter}", generations=("2",))(
            through(snapshotter)
        )


_scenarios_of_snapshots()
