"""A disk that is full in the middle of it: a clear error, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from harness.disks import full_disk
from harness.mounts import tmpfs
from harness.real import AS_NOBODY, NOBODY, need
from harness.snapshots import Machine

from taskd.errors import FailedPrecondition, ResourceExhausted, TaskdError
from taskd.events import Bus, Journal
from taskd.metadata import Database


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Machine]:
    """On a file system of 4 MiB."""
    with (
        tmpfs(tmp_path / "small", "size=4m") as folder,
        Database(folder / "metadata.db") as database,
        Journal(tmp_path / "events.db") as journal,
    ):
        yield Machine(folder, database, Bus(journal))


async def names(machine: Machine, name: str) -> set[str]:
    return {info.name async for info in machine.snapshotter(name).list("ns")}


@pytest.mark.parametrize("name", ["overlayfs", "native"])
async def test_a_full_disk(small: Machine, name: str) -> None:
    snapshotter = small.snapshotter(name)
    [mount] = await snapshotter.prepare("ns", "base-key")
    Path(mount.source, "file").write_bytes(bytes(1 << 20))
    await snapshotter.commit("ns", "base", "base-key")
    await snapshotter.prepare("ns", "key", "base")
    # SQLite may have room in its log yet: until something fails for certain.
    with full_disk(small.root):
        failed = 0
        for number in range(200):
            try:
                await snapshotter.prepare("ns", f"more-{number}", "base")
            except TaskdError as error:
                assert isinstance(error, ResourceExhausted) or "no space left" in str(error).lower()
                failed += 1
                if failed > 3:
                    break
        assert failed
        with suppress(ResourceExhausted):
            await snapshotter.commit("ns", "top", "key")
        with suppress(ResourceExhausted):
            await snapshotter.remove("ns", "key" if "key" in await names(small, name) else "top")
    successor = small.snapshotter(name)
    await successor.sweep()
    rows = small.database.read("SELECT id FROM snapshots WHERE snapshotter = ?", (name,))
    assert set(small.folders(name)) == {str(number) for (number,) in rows}
    await successor.prepare("ns", "after", "base")
    assert {"base", "after"} <= await names(small, name)


async def test_a_copy_that_does_not_fit(small: Machine) -> None:
    native = small.snapshotter("native")
    [mount] = await native.prepare("ns", "base-key")
    Path(mount.source, "file").write_bytes(bytes(range(256)) * (9 << 10))
    await native.commit("ns", "base", "base-key")
    with pytest.raises(TaskdError, match="copying of parent failed: .*No space left on device"):
        await native.prepare("ns", "key", "base")
    assert small.folders("native") == ["1"]
    assert await names(small, "native") == {"base"}
    await native.view("ns", "view", "base")


async def test_a_call_that_is_given_up(small: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a parent is copied, say: the copy is ended, and nothing is left."""
    native = small.snapshotter("native")
    [mount] = await native.prepare("ns", "base-key")
    (Path(mount.source) / "file").write_text("x")
    await native.commit("ns", "base", "base-key")
    copy = native._driver.copy

    async def endless(folder: Path, parent: int) -> None:
        await copy(folder, parent)
        await anyio.sleep_forever()

    monkeypatch.setattr(native._driver, "copy", endless)
    with anyio.move_on_after(0.5) as scope:
        await native.prepare("ns", "key", "base")
    assert scope.cancelled_caught
    assert small.folders("native") == ["1"]
    with pytest.raises(FailedPrecondition):
        native.mounts("ns", "base")


WITHOUT_ROOT = """
import os, sys
from pathlib import Path
from taskd.snapshots.folders import Folders
made = Path(sys.argv[1], "made")
(made / "a/b").mkdir(parents=True)
(made / "a/b/file").write_text("x")
(made / "a/link").symlink_to("/")
for each in (made / "a/b", made / "a"):
    each.chmod(0o555)
Folders.discard(made)
assert not made.exists()
"""


def test_what_a_user_may_not_write_to_is_removed() -> None:
    """Layers have folders that are read-only."""
    need("setpriv")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        command = [*AS_NOBODY, sys.executable, "-c", WITHOUT_ROOT, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
