"""Unpacking what anybody may have made, in a child."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.archives import Limits, child, unpack, unpacking
from taskd.errors import InvalidArgument, ResourceExhausted, Unknown

Member = tuple[str, bytes | None]
"""Its name and content; None for a folder."""

LIMITS = Limits()


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return out.getvalue()


def special(kind: bytes, **changed: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("special")
        member.type, member.linkname = kind, "a"
        for name, value in changed.items():
            setattr(member, name, value)
        archive.addfile(member)
    return out.getvalue()


@contextmanager
def opened(path: Path, archive: bytes) -> Iterator[int]:
    path.write_bytes(archive)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def unpacked(folder: Path, archive: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    with opened(folder / "archive", archive) as source:
        await unpack(source, folder / "to", limits)
    return found(folder / "to")


def found(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_files_and_folders(tmp_path: Path, form: int) -> None:
    long = "/".join(["long" * 12] * 2)
    members = {"a": b"one", "f": None, "./f/b": b"x" * 5000, "g//h/": None, long: b"", "./": None}
    archive = tar(*members.items(), format=form)
    assert await unpacked(tmp_path, archive) == {
        "a": b"one",
        "f": b"<folder>",
        "f/b": b"x" * 5000,
        "g": b"<folder>",
        "g/h": b"<folder>",
        long.partition("/")[0]: b"<folder>",
        long: b"",
    }
    assert (tmp_path / "to/a").stat().st_mode & 0o777 == 0o600


async def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    archive = tar(("caf\udce9", b"x"), format=tarfile.GNU_FORMAT)
    assert await unpacked(tmp_path, archive) == {"caf\udce9": b"x"}


KINDS = {
    "link": tarfile.LNKTYPE,
    "symlink": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "contiguous": tarfile.CONTTYPE,
    "unknown": b"Z",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidArgument, match="^special: not a plain file: invalid argument$"):
        await unpacked(tmp_path, special(KINDS[kind]))
    assert found(tmp_path / "to") == {}


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/up", "a/..", "..", "//up"])
async def test_nothing_is_written_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="not a plain file below the folder"):
        await unpacked(tmp_path, tar((name, b"x")))
    assert found(tmp_path / "to") == {}
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"", "empty"),
        (b"x" * 5000, "invalid header"),
        (tar(("a", b"x" * 2000))[:1500], "larger than the archive"),
        (tar(("a", b"x"))[:1024] + b"x" * 1024, "invalid header"),
        (tar(("a", b"x"), ("b", b"x"))[:1124], "invalid header"),
        (tar(("a", b"x"), ("a/b", b"x")), "folder and a file"),
        (tar(("a", b"x"), ("a", None)), "folder and a file"),
        (tar(("a", None), ("a", b"x")), "Is a directory"),
        (tar(("x" * 256, b"")), "File name too long"),
    ],
)
async def test_what_is_no_archive(tmp_path: Path, archive: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        await unpacked(tmp_path, archive)


@pytest.mark.parametrize(
    ("archive", "limits", "words"),
    [
        (tar(*((str(n), b"") for n in range(4))), Limits(members=3), "more than 3 files and"),
        (tar(("a/b/c/d", b"")), Limits(members=3), "more than 3 files and folders"),
        (tar(("a", b"xx"), ("b", b"xx")), Limits(bytes=3), "more than 3 bytes"),
        (tar(("a", b"x" * 100_000)), Limits(bytes=99_999), "more than 99999 bytes"),
        (tar(("a/b/c", b"")), Limits(depth=2), "a path of more than 2 parts"),
        (tar(("a/b/c", None)), Limits(depth=2), "a path of more than 2 parts"),
    ],
)
async def test_limits(tmp_path: Path, archive: bytes, limits: Limits, words: str) -> None:
    with pytest.raises(ResourceExhausted, match=f"^{words}"):
        await unpacked(tmp_path, archive, limits)


async def test_what_is_just_within_the_limits(tmp_path: Path) -> None:
    archive = tar(("a/b", b"xx"), ("c", b"x"))
    assert await unpacked(tmp_path, archive, Limits(members=3, bytes=3, depth=2)) == {
        "a": b"<folder>",
        "a/b": b"xx",
        "c": b"x",
    }


async def test_memory_is_limited(tmp_path: Path) -> None:
    """A name of forty megabytes is read as a whole by tarfile."""
    archive = tar(("x" * (40 << 20), b""), format=tarfile.GNU_FORMAT)
    with pytest.raises(ResourceExhausted, match="takes more than 67108864 bytes of memory"):
        await unpacked(tmp_path, archive, Limits(memory=64 << 20))


def children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of a child that never comes to an end."""
    script = tmp_path / "endless.py"
    script.write_text("while True: pass")
    command = (*unpacking._COMMAND[:-1], str(script))
    assert unpacking._COMMAND[-1] == child.__file__
    monkeypatch.setattr(unpacking, "_COMMAND", command)
    return script


@pytest.mark.usefixtures("endless")
async def test_time_is_limited(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(ResourceExhausted, match=r"^unpacking took more than 0\.3 s"):
        await unpacked(tmp_path, tar(("a", b"x")), Limits(seconds=0.3))
    assert children() == before


@pytest.mark.usefixtures("endless")
async def test_whoever_is_cancelled_takes_the_child_along(tmp_path: Path) -> None:
    before = children()
    with anyio.move_on_after(0.3) as scope:
        await unpacked(tmp_path, tar(("a", b"x")))
    assert scope.cancelled_caught
    assert children() == before


async def test_a_child_that_dies_is_told(tmp_path: Path, endless: Path) -> None:
    endless.write_text("raise RuntimeError('it fell over')")
    with pytest.raises(Unknown, match="that unpacks ended with 1: RuntimeError: it fell over$"):
        await unpacked(tmp_path, tar(("a", b"x")))
    endless.write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(Unknown, match="^the process that unpacks was killed$"):
        await unpacked(tmp_path, tar(("a", b"x")))


async def test_what_the_disk_says_is_not_the_archives_fault(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "archive", WHOLE) as source,
        pytest.raises(Unknown, match="No such file or directory"),
    ):
        await unpack(source, tmp_path / "no/such/folder", LIMITS)


async def test_nothing_of_the_working_folder_or_the_environment_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "tarfile", "ctypes", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    assert await unpacked(tmp_path, tar(("a", b"x"))) == {"a": b"x"}
    assert not (tmp_path / "run").exists()


WHOLE = tar(("a", b"one"), ("f", None), ("f/b", b"x" * 600), ("y" * 150, b"long"))


@given(data=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_unpacked_stays_in_its_folder(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(WHOLE) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    folder = tmp_path / str(time.monotonic_ns())
    folder.mkdir()

    async def run() -> None:
        try:
            await unpacked(folder, bytes(damaged), Limits(seconds=10))
        except (InvalidArgument, ResourceExhausted):
            pass
        except Unknown as exc:
            raise AssertionError("not the archive's fault?") from exc

    anyio.run(run)
    assert {path.name for path in folder.iterdir()} <= {"archive", "to"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
