"""What is read from disks: archives in the content store, and databases."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import tempfile
from pathlib import Path

from fuzz.session import Session, damaged
from taskd.archives import Limits, unpack
from taskd.errors import InvalidArgument, ResourceExhausted, TaskdError
from taskd.events import Envelope, Journal
from taskd.metadata import Container, ContainerStore, Database
from taskd.types import TypedValue

__all__ = ["archives", "databases"]

_KINDS = (
    *(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
    *(tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"),
)
_NAMES = ("a", "b", "a/b", "./a", "c/", "../up", "/up", "a/../b", "long" * 20, "\udcff")


async def archives(session: Session) -> None:
    """Whatever is in an archive, it stays in its folder, or is refused."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as name:
        folder = Path(name)
        archive, target = folder / "archive", folder / "to"
        for _ in session.cases():
            data = _archive(session.random)
            archive.write_bytes(data)
            descriptor = os.open(archive, os.O_RDONLY)
            try:
                await unpack(descriptor, target, Limits(seconds=30, members=20, depth=5))
            except InvalidArgument:
                outcome = "refused"
            except ResourceExhausted:
                outcome = "too much"
            else:
                outcome = "unpacked"
            finally:
                os.close(descriptor)
            session.saw(outcome, len(data))
            assert {path.name for path in folder.iterdir()} == {"archive", "to"}
            for path in target.rglob("*"):
                assert path.is_dir() or path.is_file(), path
                assert not path.is_symlink(), path
                assert path.stat().st_nlink == 1 or path.is_dir(), path
            shutil.rmtree(target)


def _archive(choose: random.Random) -> bytes:
    out = io.BytesIO()
    form = choose.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for _ in range(choose.randint(0, 5)):
            member = tarfile.TarInfo(choose.choice(_NAMES))
            member.type = choose.choice(_KINDS) if choose.random() < 0.3 else tarfile.REGTYPE
            member.linkname = choose.choice(("", "a", "/etc/passwd", "../up"))
            content = choose.randbytes(choose.choice((0, 1, 600)))
            member.size = len(content) if member.isreg() else 0
            if form == tarfile.PAX_FORMAT and choose.random() < 0.2:
                member.pax_headers = {"comment": "x" * choose.choice((1, 500))}
            archive.addfile(member, io.BytesIO(content))
    return damaged(choose, out.getvalue()) if choose.random() < 0.7 else out.getvalue()


_SPEC = TypedValue("spec", b"{}" * 200)


async def databases(session: Session) -> None:
    """A damaged file opens, or is said to be damaged; and so is what is read from it."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as name:
        whole, copy = Path(name, "whole"), Path(name, "copy")
        whole.mkdir()
        await _fill(whole)
        for _ in session.cases():
            shutil.copytree(whole, copy)
            size = 0
            for _ in range(session.random.randint(1, 2)):
                file = session.random.choice(sorted(copy.iterdir()))
                size += _damage(session.random, file)
            for outcome in (await _open_metadata(copy), await _open_events(copy)):
                session.saw(outcome, size)
            shutil.rmtree(copy)


async def _fill(folder: Path) -> None:
    """Databases as a daemon leaves them that is killed."""
    live = folder.with_name("live")
    live.mkdir()
    await _write(live, range(15))
    # The first half is in the files themselves, the second in their logs.
    await _write(live, range(15, 30), copy_to=folder)


async def _write(live: Path, numbers: range, copy_to: Path | None = None) -> None:
    with Database(live / "metadata.db") as database, Journal(live / "events.db") as journal:
        store = ContainerStore(database)
        for number in numbers:
            container = Container(
                f"c{number}",
                labels={"key": "x" * number},
                runtime_name="r",
                spec=_SPEC,
            )
            await store.create("ns", container)
            await journal.append(Envelope(number, "ns", "/a", TypedValue("a.Type", b"x" * 300)))
        for file in live.iterdir() if copy_to else ():
            shutil.copy(file, copy_to)


def _damage(choose: random.Random, file: Path) -> int:
    data = bytearray(file.read_bytes())
    if choose.random() < 0.15:
        data = bytearray(damaged(choose, bytes(data)))
    elif data:
        for _ in range(choose.choice((1, 1, 3, 50))):
            data[choose.randrange(len(data))] = choose.randrange(256)
    file.write_bytes(data)
    return len(data)


async def _open_metadata(folder: Path) -> str:
    try:
        with Database(folder / "metadata.db") as database:
            found = await ContainerStore(database).list("ns")
            await ContainerStore(database).create(
                "ns", Container("new", runtime_name="r", spec=_SPEC)
            )
            return "all there" if len(found) == 30 else "not all there"
    except TaskdError as exc:
        return type(exc).__name__


async def _open_events(folder: Path) -> str:
    try:
        with Journal(folder / "events.db") as journal:
            found = journal.read(0, 100)
            await journal.append(Envelope(1, "ns", "/b", None))
            return "all there" if len(found) == 30 else "not all there"
    except TaskdError as exc:
        return type(exc).__name__
