"""Snapshots are made and removed by processes each of which is killed one step later.

    python killed_snapshots.py FOLDER SNAPSHOTTER

A step is whatever changes a file's name, and each statement of SQLite's that changes something:
SIGKILL comes before it. After each process another one looks whether what was answered is there,
whether nothing else is, and whether all goes on. Prints how many steps there were. Fails with words
that tell of the step.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from taskd.errors import AlreadyExists, NotFound
from taskd.events import Bus, Journal
from taskd.metadata import Database
from taskd.snapshots import Snapshotter, load
from taskd.sqlite import SqliteFile

STEPS = {"os.mkdir", "os.rename", "os.chmod", "os.chown", "os.remove", "os.rmdir", "os.truncate"}
STEPS |= {"subprocess.Popen"}

READS = re.compile(r"\s*(SELECT|WITH|PRAGMA|--)")

NAMES = {"base", "key", "top", "top-key", "view"}


class Steps:
    """Kills this process before step `last`, if it is not 0."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.done = 0
        self.counting = False

    def step(self) -> None:
        self.done += self.counting
        if self.counting and self.done == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        connect = SqliteFile.connect

        def watched(file: SqliteFile) -> sqlite3.Connection:
            connection = connect(file)
            if file.name == "metadata database":
                connection.set_trace_callback(
                    lambda statement: None if READS.match(statement) else self.step()
                )
            return connection

        SqliteFile.connect = watched  # type: ignore[method-assign]
        sys.addaudithook(lambda event, _: self.step() if event in STEPS else None)


Work = Callable[[Snapshotter, Database], Awaitable[None]]


async def using(root: Path, name: str, work: Work) -> None:
    with (
        Database(root / "metadata.db") as database,
        Journal(root / "events.db") as journal,
    ):
        await work(load(database, Bus(journal), root)[name], database)


async def prepared(snapshotter: Snapshotter, _: Database) -> None:
    """What is there before."""
    [mount] = await snapshotter.prepare("ns", "base-key")
    Path(mount.source, "file").write_text("words")
    await snapshotter.commit("ns", "base", "base-key")
    await snapshotter.prepare("ns", "key", "base")


async def changed(snapshotter: Snapshotter, told: Callable[[str], None]) -> None:
    """What the processes do; they tell what they were answered."""
    await snapshotter.prepare("ns", "top-key", "base")
    told("prepared")
    await snapshotter.commit("ns", "top", "top-key")
    told("committed")
    await snapshotter.view("ns", "view", "top")
    told("viewed")
    await snapshotter.remove("ns", "key")
    told("removed")
    await snapshotter.sweep()
    told("swept")


async def checked(snapshotter: Snapshotter, database: Database, answers: list[str]) -> None:
    """Raises AssertionError."""
    await snapshotter.sweep()
    infos = {info.name: info async for info in snapshotter.list("ns")}
    assert infos.keys() <= NAMES, infos
    assert "base" in infos
    assert not {"top", "top-key"} <= infos.keys(), infos
    if "committed" in answers:
        assert "top" in infos
    elif "prepared" in answers:
        assert {"top", "top-key"} & infos.keys(), infos
    assert "viewed" not in answers or "view" in infos
    assert "removed" not in answers or "key" not in infos
    assert "removed" in answers or "viewed" in answers or "key" in infos

    # Each has its folder, and there is no other; of native's views only those without a parent.
    folders = {each.name for each in (snapshotter.root / "snapshots").iterdir()}
    rows = database.read(
        "SELECT id FROM snapshots WHERE snapshotter = ?1 AND NOT (?1 = 'native' AND kind = 1)",
        (snapshotter.name,),
    )
    assert folders == {str(number) for (number,) in rows}, folders
    [mount] = await snapshotter.view("ns", "view of base", "base")
    assert Path(mount.source, "file").read_text() == "words"

    # All goes on.
    for key in ("top-key", "again"):
        try:
            await snapshotter.prepare("ns", key, "base")
        except AlreadyExists:
            assert key in infos
    await snapshotter.commit("ns", "again-c", "again")
    for key in ("again-c", "top-key"):
        await snapshotter.remove("ns", key)
    try:
        await snapshotter.remove("ns", "again")
    except NotFound:
        return
    raise AssertionError("there is one that was committed")


def forked(work: Callable[[], Any]) -> int:
    """How a fork ended that does `work`, as `os.waitstatus_to_exitcode` has it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, name: str) -> int:
    template = folder / "template"
    template.mkdir()
    assert forked(lambda: asyncio.run(using(template, name, prepared))) == 0
    number = 0
    while True:
        number += 1
        # In the same place each time: mounts have it in their options.
        root = folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root, symlinks=True)
        answers = folder / "answers"
        answers.write_text("")

        def told(what: str, answers: Path = answers) -> None:
            with answers.open("a") as file:
                file.write(f"{what}\n")

        def killed(last: int = number, root: Path = root) -> None:
            steps = Steps(last)
            steps.watch()

            async def work(snapshotter: Snapshotter, _: Database) -> None:
                steps.counting = True
                await changed(snapshotter, told)
                steps.counting = False

            asyncio.run(using(root, name, work))

        ended = forked(killed)
        if ended not in (0, -signal.SIGKILL):
            print(f"step {number}: ended with {ended}", file=sys.stderr)
            return 1
        said = answers.read_text().split()
        check = partial(using, root, name, partial(checked, answers=said))
        if forked(lambda check=check: asyncio.run(check())):
            print(f"after step {number}, with the answers {said}", file=sys.stderr)
            return 1
        if ended == 0:
            print(number - 1)
            return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
