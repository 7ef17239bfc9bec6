"""Layers onto folders, in the process for it."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from harness.layers import (
    TIME,
    Apply,
    Member,
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
from harness.real import AS_NOBODY, NOBODY, need

from taskd import procfs
from taskd.diff import child
from taskd.errors import ResourceExhausted, Unknown
from taskd.types import Mount

CAPABILITY = b"\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""What `setcap cap_net_raw+ep` writes."""
LONG = "/".join(["long" * 20] * 4)


def everything() -> list[Member]:
    attributes = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}
    return [
        folder("./", mode=0o711),
        folder("d", mode=0o1777, uid=3, gid=4),
        file("d/plain", b"one", mode=0o640, uid=1000, gid=1001),
        file("d/setuid", b"two", mode=0o6755, uid=0, gid=5, mtime=TIME + 0.123456789),
        file("d/capable", b"three", mode=0o755, pax_headers=attributes),
        file("d/trusted", pax_headers={"SCHILY.xattr.trusted.x": "no"}),
        file("d/attribute", pax_headers={"SCHILY.xattr.user.x": "yes"}),
        link("d/hard", "d/plain", mode=0o640, uid=1000, gid=1001),
        symlink("d/soft", "../nowhere", uid=7, gid=8),
        link("d/hard-soft", "d/soft", uid=7, gid=8),
        device("d/null", 1, 3, mode=0o666),
        device("d/disk", 7, 300, block=True, mode=0o660),
        fifo("d/fifo", mode=0o600),
        file(LONG, b"deep"),
        file("caf\udce9", b"no text", mtime=0),
        file("big", bytes(range(256)) * 10_000),
    ]


async def test_everything(tmp_path: Path, apply: Apply) -> None:
    """As GNU tar unpacks it, but for what is only containerd's."""
    archive = tar(*everything())
    done = await apply(archive)
    assert done == (f"sha256:{hashlib.sha256(archive).hexdigest()}", len(archive))
    (tmp_path / "gnu").mkdir()
    subprocess.run(
        ["tar", "-x", "--xattrs", "--xattrs-include=security.*", "--xattrs-include=user.*", "-p"],
        input=archive,
        cwd=tmp_path / "gnu",
        check=True,
    )
    ours, gnu = tree(tmp_path / "root"), tree(tmp_path / "gnu")
    assert ours[1:] == gnu[1:]
    assert ours[0].startswith(". 0o40755 0:0 now")  # of the root nothing is taken
    shown = "\n".join(ours)
    assert f"d/setuid 0o106755 0:5 {TIME}.123456" in shown
    assert "security.capability" in shown
    assert "d/disk 0o60660 0:0" in shown
    assert (tmp_path / "root/d/soft").lstat().st_uid == 7


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
async def test_forms(tmp_path: Path, apply: Apply, form: int, kind: str) -> None:
    name = "d" * 90 + "/" + "f" * 90
    archive = tar(file(name, b"x" * 70_000), file("a", uid=2_000_000), format=form)
    done = await apply(variants(archive)[kind])
    assert done.digest == f"sha256:{hashlib.sha256(archive).hexdigest()}"
    assert (tmp_path / "root" / name).read_bytes() == b"x" * 70_000
    assert (tmp_path / "root/a").stat().st_uid == 2_000_000


@pytest.mark.parametrize("version", ["", "0.0", "0.1", "1.0"])
async def test_sparse_files(tmp_path: Path, apply: Apply, version: str) -> None:
    made = tmp_path / "sparse"
    with made.open("wb") as out:
        for number in range(30):
            out.seek(number * 300_000)
            out.write(b"piece %d" % number)
        out.truncate(10_000_000)
    options = [f"--sparse-version={version}", "--format=pax"] if version else ["--format=gnu"]
    command = ["tar", "-c", "--sparse", *options, "sparse"]
    done = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    assert len(done.stdout) < 1_000_000
    await apply(done.stdout)
    found = tmp_path / "root/sparse"
    assert found.read_bytes() == made.read_bytes()
    assert found.stat().st_blocks < 2000


async def test_what_is_there_is_replaced(tmp_path: Path, apply: Apply) -> None:
    first = tar(
        folder("d", mode=0o700),
        file("d/kept", b"kept"),
        file("file", b"old"),
        folder("folder"),
        file("folder/in", b"gone"),
        symlink("link", "d"),
        fifo("fifo"),
    )
    second = tar(
        folder("d", mode=0o751, uid=9, mtime=TIME + 5),
        file("file", b"new"),
        file("folder", b"now a file"),
        folder("link"),
        file("link/in", b"not in d"),
        symlink("fifo", "file"),
    )
    await apply(first)
    await apply(second)
    root = tmp_path / "root"
    assert (root / "d/kept").read_bytes() == b"kept"
    assert not (root / "d/in").exists()
    state = (root / "d").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_mtime) == (0o751, 9, TIME + 5)
    assert (root / "file").read_bytes() == b"new"
    assert (root / "folder").read_bytes() == b"now a file"
    assert (root / "link/in").read_bytes() == b"not in d"
    assert (root / "fifo").readlink() == Path("file")


async def test_whiteouts_delete(tmp_path: Path, apply: Apply) -> None:
    names = ("a/one", "a/two", "b/one", "b/deep/two", "b/link/three", "c/one")
    await apply(tar(*(file(name, b"old") for name in names), symlink("other", "b")))
    await apply(
        tar(
            file("a/.wh.one"),
            file("a/.wh.nothing"),
            file("b/new", b"new"),
            file("other/through", b"new"),  # it is in b
            file("b/.wh..wh..opq"),
            file("b/later", b"new"),
            file(".wh.c"),
            file("made/on/the/.wh.way"),
        )
    )
    root = tmp_path / "root"
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert found == [
        *("a", "a/two", "b", "b/later", "b/new", "b/through"),
        *("made", "made/on", "made/on/the", "other"),
    ]


async def test_an_upper_directory(tmp_path: Path, apply: Apply) -> None:
    """What is deleted is written down, and folders on the way look as they do below."""
    lower, lowest = tmp_path / "lower", tmp_path / "lowest"
    upper, work = tmp_path / "upper", tmp_path / "work"
    for each in (lower, lowest, upper, work):
        each.mkdir()
    (lower / "d").mkdir(mode=0o750)
    os.chown(lower / "d", 5, 6)
    os.setxattr(lower / "d", "user.x", b"y")
    os.utime(lower / "d", (TIME, TIME))
    (lowest / "d/deeper").mkdir(parents=True)
    (lowest / "d/deeper").chmod(0o705)
    (lowest / "d").chmod(0o700)
    (lower / "l").symlink_to(tmp_path)
    options = (f"lowerdir={lower}:{lowest}", f"upperdir={upper}", f"workdir={work}", "index=off")
    overlay = Mount("overlay", "overlay", options=options)
    archive = tar(
        file("d/deeper/new", b"new"),
        file("d/.wh.old", uid=1, gid=2),
        folder("o"),
        file("o/.wh..wh..opq"),
        file("o/in", b"in"),
        file("l/in", b"in"),
    )
    await apply(archive, overlay)
    state = (upper / "d").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o750, 5, 6)
    assert os.getxattr(upper / "d", "user.x") == b"y"
    assert stat.S_IMODE((upper / "d/deeper").stat().st_mode) == 0o705
    whiteout = (upper / "d/old").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert (whiteout.st_rdev, whiteout.st_uid, whiteout.st_gid) == (0, 1, 2)
    assert os.getxattr(upper / "o", "trusted.overlay.opaque") == b"y"
    assert (upper / "l/in").read_bytes() == b"in"
    assert not (tmp_path / "in").exists()
    assert not [each for each in procfs.mounts() if str(tmp_path) in str(each.point)]


OUTSIDE: dict[str, list[Member]] = {
    "up": [file("../../up", b"x")],
    "absolute": [file("/up", b"x")],
    "up in the middle": [file("a/../../../up", b"x")],
    "through a link": [symlink("l", ".."), file("l/up", b"x")],
    "through an absolute link": [symlink("l", "/"), file("l/up", b"x")],
    "through links": [symlink("k", "l/.."), symlink("l", "/../.."), file("k/up", b"x")],
    "a dangling link": [symlink("l", "/made/here"), file("l/../../up", b"x"), file("l/up")],
}


@pytest.mark.parametrize("how", OUTSIDE)
async def test_names_stay_in_the_root(tmp_path: Path, apply: Apply, how: str) -> None:
    await apply(tar(*OUTSIDE[how]))
    places = [path for path in tmp_path.rglob("up") if path.is_relative_to(tmp_path / "root")]
    assert places
    assert set(tmp_path.rglob("up")) == set(places)
    assert not Path("/up").exists()


async def test_links_do_not_lead_out(tmp_path: Path, apply: Apply) -> None:
    """Neither what is written nor what is linked to, removed, or changed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("safe")
    members = [
        symlink("out", str(tmp_path / "outside")),
        symlink("file", str(tmp_path / "outside/file")),
        link("hard", "file"),
        file("file", b"here"),
        file("out/.wh.file"),
        folder("folder"),
        file("folder/.wh..wh..opq"),
    ]
    await apply(tar(*members))
    assert (tmp_path / "outside/file").read_text() == "safe"
    assert (tmp_path / "root/file").read_bytes() == b"here"
    assert (tmp_path / "root/hard").is_symlink()
    with pytest.raises(Unknown, match="^link /outside/file /stolen: no such file or directory$"):
        await apply(tar(link("stolen", "../outside/file")))


def damaged(archive: bytes, at: int) -> bytes:
    return archive[:at] + bytes([archive[at] ^ 0xFF]) + archive[at + 1 :]


ONE = tar(file("a", b"x" * 3000))
RANDOM = tar(file("a", os.urandom(100_000)))
GZIP, ZSTD = variants(RANDOM)["+gzip"], variants(RANDOM)["+zstd"]
INVALID = "archive/tar: invalid tar header"

BROKEN = {
    "no archive": (b"no archive" * 100, INVALID),
    "short": (b"short", "unexpected EOF"),
    "a damaged header": (damaged(ONE, 30), INVALID),
    "ends in a header": (ONE[:300], "unexpected EOF"),
    "ends in a file": (ONE[:2000], "unexpected EOF"),
    "something after one block of zeros": (ONE[:3584] + bytes(512) + b"x" * 512, INVALID),
    "gzip that ends early": (GZIP[:50_000], "unexpected EOF"),
    "gzip of no archive": (variants(os.urandom(1000))["+gzip"], INVALID),
    "damaged gzip": (damaged(GZIP, len(GZIP) - 5), "gzip: invalid checksum"),
    "gzip's beginning alone": (GZIP[:4], "unexpected EOF"),
    "bytes after gzip": (variants(ONE)["+gzip"] + b"more than ten", "gzip: invalid header"),
    "zstd that ends early": (ZSTD[:50_000], "unexpected EOF"),
    "damaged zstd": (damaged(ZSTD, len(ZSTD) - 2), "zstd: corrupt input: .*"),
    "an unknown type": (tar(file("a", type=b"Z")), "unhandled tar header type 90"),
    "contiguous": (tar(file("a", type=b"7")), "unhandled tar header type 55"),
    "a whiteout of nothing": (
        tar(file("d/.wh.")),
        "invalid whiteout name: .wh.: invalid archive",
    ),
    "a whiteout of what is above": (
        tar(file("d/.wh...")),
        "invalid whiteout name: .wh...: invalid archive",
    ),
    "a file for a folder": (tar(file("a"), file("a/b")), "mkparent /a: not a directory"),
    "links in a circle": (tar(symlink("a", "b"), symlink("b", "a"), file("a/c")), ".*too many .*"),
    "a name that is too long": (tar(file("x" * 300)), "open /x{300}: file name too long"),
    "a link to what is not there": (
        tar(link("a", "b")),
        "link /b /a: no such file or directory",
    ),
    "a link to itself": (tar(file("a"), link("a", "a")), "link /a /a: no such file or directory"),
    "a folder that is gone in the end": (
        tar(folder("d"), file(".wh.d")),
        "failed call to UtimesNanoAt for /d: no such file or directory",
    ),
    "a device that cannot be": (tar(device("a", 3, 1 << 20)), "invalid argument"),
    "an attribute that cannot be": (
        tar(file("a", pax_headers={"SCHILY.xattr.nosuch.x": "y"})),
        ".*",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_layers(tmp_path: Path, apply: Apply, what: str) -> None:
    layer, words = BROKEN[what]
    if what == "an attribute that cannot be":
        await apply(layer)  # not supported is passed over
        return
    with pytest.raises(Unknown, match=f"^{words}$"):
        await apply(layer)
    assert not [each for each in procfs.mounts() if str(tmp_path) in str(each.point)]


async def test_ends_without_an_end(tmp_path: Path, apply: Apply) -> None:
    """Go takes it for one."""
    await apply(ONE[:3584])
    await apply(b"")
    await apply(ONE[:3584] + bytes(512))
    await apply(ONE[: 512 + 3010])
    assert (tmp_path / "root/a").stat().st_size == 3000


async def test_members_one_after_another(tmp_path: Path, apply: Apply) -> None:
    halves = ONE[:1000], ONE[1000:]
    for kind in ("+gzip", "+zstd"):
        done = await apply(b"".join(variants(half)[kind] for half in halves))
        assert done.size == len(ONE)
    skipped = b"\x50\x2a\x4d\x18\5\0\0\0hello"
    assert (await apply(skipped + variants(ONE)["+zstd"])).size == len(ONE)


async def test_what_comes_after_the_end_counts(apply: Apply) -> None:
    archive = ONE + b"more"
    done = await apply(archive)
    assert done == (f"sha256:{hashlib.sha256(archive).hexdigest()}", len(archive))


async def test_only_what_may_be_compressed_is(apply: Apply) -> None:
    with pytest.raises(Unknown, match="^unexpected EOF$"):
        await apply(variants(tar(file("a")))["+gzip"], sniff=False)


async def test_bounds(tmp_path: Path, apply: Apply) -> None:
    """A bomb of zeros, a file that is one hole, and too many files."""
    zeros = tar(file("zeros", bytes(40 << 20)))
    for kind in ("+gzip", "+zstd"):
        bomb = variants(zeros)[kind]
        assert len(bomb) < len(zeros) / 100
        with pytest.raises(ResourceExhausted, match="have more than 10485760 bytes"):
            await apply(bomb, max_size=10 << 20)
    with pytest.raises(ResourceExhausted, match="^the layer has more than 400000 bytes"):
        await apply(tar(*(file(str(number)) for number in range(900))), max_size=400_000)
    with pytest.raises(ResourceExhausted, match="^the layer has more than 10 entries"):
        await apply(tar(*(file(str(number)) for number in range(11))), max_entries=10)
    hole = io.BytesIO()
    with tarfile.open(fileobj=hole, mode="w") as archive:
        records = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}
        member, _ = file("hole", pax_headers=records)
        archive.addfile(member)
    with pytest.raises(ResourceExhausted, match="^the files of the layer have more than"):
        await apply(hole.getvalue())
    assert sum(path.stat().st_blocks for path in (tmp_path / "root").rglob("*")) * 512 < 60 << 20


async def test_no_mounts_at_all(tmp_path: Path, apply: Apply) -> None:
    """It goes nowhere, and its digest is told."""
    empty = Mount("tmpfs", "none")
    done = await apply(ONE, empty)
    assert done.size == len(ONE)
    assert list((tmp_path / "root").iterdir()) == []
    assert list((tmp_path / "place/left").iterdir()) == []


async def test_a_mount_that_fails(apply: Apply) -> None:
    with pytest.raises(Unknown, match='source: "/nosuch".*: no such file or directory$'):
        await apply(ONE, Mount("bind", "/nosuch", options=("rbind",)))
    with pytest.raises(Unknown, match="read-only file system$"):
        await apply(ONE, Mount("bind", "/usr", options=("rbind", "ro")))


async def test_a_mount_in_a_mount(tmp_path: Path, apply: Apply) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "root/d").mkdir(parents=True)
    mounts = (
        Mount("bind", str(tmp_path / "root"), options=("rbind", "rw")),
        Mount("bind", str(tmp_path / "inner"), "d", ("rbind", "rw")),
    )
    await apply(tar(file("d/in", b"x"), file("out", b"y")), *mounts)
    assert (tmp_path / "inner/in").read_bytes() == b"x"
    assert (tmp_path / "root/out").read_bytes() == b"y"
    assert list((tmp_path / "root/d").iterdir()) == []


def test_without_root() -> None:
    """In a user namespace: owners are the user's own, and there are no devices."""
    need("setpriv")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for folder_ in ("root", "place/left", "place/right"):
            (base / folder_).mkdir(parents=True)
        members = [
            folder("d", mode=0o555, uid=5),
            file("d/a", b"x", mode=0o4755, uid=1000),
            device("null", 1, 3),
            file("e/.wh.x"),
        ]
        (base / "blob").write_bytes(tar(*members))
        for each in (base, *base.rglob("*")):
            os.chown(each, NOBODY, NOBODY)
        root = child.ordered([Mount("bind", str(base / "root"), options=("rbind", "rw"))])
        applied = {"task": "apply", "mounts": root, "sniff": True, "sync": True}
        bounds = {"max_size": 1 << 30, "max_entries": 9}
        made = {"task": "diff", "left": [], "right": root, "compression": "", "latest": None}
        with (base / "blob").open("rb") as blob, (base / "made").open("wb") as out:
            for task in ({**applied, **bounds}, {**made, "out": out.fileno()}):
                command = child.command(task["task"], {**task, "place": str(base / "place")})
                done = subprocess.run(
                    [*AS_NOBODY, *command],
                    stdin=blob,
                    stdout=subprocess.PIPE,
                    pass_fds=[out.fileno()],
                    check=True,
                )
                assert done.stdout.startswith(b"done\nsha256:"), done.stdout
        with tarfile.open(base / "made") as archive:
            names = {each.name: (each.mode, each.uid) for each in archive}
        assert names == {"d": (0o555, 0), "d/a": (0o4755, 0), "e": (0o755, 0)}
        assert (base / "root/d/a").stat().st_uid == NOBODY
