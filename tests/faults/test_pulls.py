"""What ends a pull before its time, and what is left once the same pull has gone well: nothing."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.daemons import Taskd
from harness.generations import GENERATIONS
from harness.mounts import tmpfs
from harness.registry import Image, Registry, layer, program

pytestmark = [
    pytest.mark.skipif("TASKD_VM" in os.environ, reason="there is no docker-registry"),
    pytest.mark.timeout(1800 if "TASKD_SOAK_CONTAINERS" in os.environ else 300),
]

KILLS = 20 if "TASKD_SOAK_CONTAINERS" in os.environ else 5
LAYERS, FILES = 4, 300
SEED = 7
NAMESPACE = "pulls"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, str]]:
    """A registry, and in it an image that takes a while: many files, and some data."""
    program()
    source = random.Random(SEED)
    layers = tuple(
        layer({f"{number}/{each}": source.randbytes(4000) for each in range(FILES)})
        for number in range(LAYERS)
    )
    with Registry(tmp_path_factory.mktemp("registry")) as found:
        found.put(Image(layers), "a/b:1")
        yield found, found.name("a/b:1")


def taskd(folder: Path, *options: str) -> Taskd:
    path = f"{GENERATIONS[-1].binaries()}:{os.environ['PATH']}"
    return Taskd(folder, *options, path=path)


def pull(daemon: Taskd, name: str) -> subprocess.CompletedProcess[str]:
    command = ("images", "pull", "--plain-http", name)
    return daemon.ctr(*command, namespace=NAMESPACE, check=False)


def is_whole(daemon: Taskd, name: str, place: Path) -> bool:
    """Whether a container would see all files, as many as there are bytes in them."""
    place.mkdir()
    daemon.ctr("images", "mount", name, str(place), namespace=NAMESPACE)
    try:
        sizes = [each.stat().st_size for each in place.rglob("*/*")]
    finally:
        daemon.ctr("images", "unmount", "--rm", str(place), namespace=NAMESPACE)
        place.rmdir()
    return sizes == [4000] * LAYERS * FILES


def workers(daemon: Taskd) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"taskd.layers" in command and str(daemon.state).encode() in command:
                found.append(folder.name)
    return found


def remains(daemon: Taskd) -> list[str]:
    """What there is once all images have been removed: records, files and mounts."""

    def told(*arguments: str) -> list[str]:
        return daemon.ctr(*arguments, namespace=NAMESPACE).stdout.splitlines()

    found = [*told("content", "ls", "-q"), *told("leases", "ls", "-q")]
    found += [*told("content", "active")[1:], *told("snapshots", "ls")[1:]]
    content = daemon.root / "io.containerd.content.v1.content"
    snapshots = daemon.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    folders = [content / "ingest", content / "blobs/sha256", snapshots]
    found += [str(each) for folder in folders if folder.exists() for each in folder.iterdir()]
    mounts = Path("/proc/self/mountinfo").read_text()
    return [*found, *(["a mount"] if str(daemon.state) in mounts else [])]


def nothing_is_left(daemon: Taskd, name: str) -> None:
    # Those of clients that could not delete them; a day later they would expire.
    leases = daemon.ctr("leases", "ls", "-q", namespace=NAMESPACE).stdout.split()
    if leases:
        daemon.ctr("leases", "rm", *leases, namespace=NAMESPACE)
    daemon.ctr("images", "rm", "--sync", name, namespace=NAMESPACE)
    deadline = time.monotonic() + 20  # folders go a little later than what knows of them
    while (left := [*remains(daemon), *workers(daemon)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == [], left


def test_a_daemon_that_is_killed(folder: Path, registry: tuple[Registry, str]) -> None:
    """At any moment of a pull, of which the next one makes what it can use."""
    _, name = registry
    chance = random.Random(SEED)
    with taskd(folder / "t") as daemon:
        begin = time.monotonic()
        assert pull(daemon, name).returncode == 0
        took = time.monotonic() - begin
        nothing_is_left(daemon, name)
        cut = 0
        for _ in range(KILLS):
            command = ("images", "pull", "--plain-http", name)
            with subprocess.Popen(
                daemon.ctr_command(*command, namespace=NAMESPACE),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as client:
                time.sleep(chance.uniform(0, took))
                daemon.kill()
                cut += client.wait(60) != 0
            daemon.start()
            if chance.random() < 0.3:
                assert pull(daemon, name).returncode == 0
                assert is_whole(daemon, name, folder / "mounted")
                nothing_is_left(daemon, name)
        assert cut
        assert pull(daemon, name).returncode == 0
        assert is_whole(daemon, name, folder / "mounted")
        nothing_is_left(daemon, name)


def test_a_disk_that_is_full(folder: Path, registry: tuple[Registry, str]) -> None:
    """At any step of a pull: the first sizes take no records, others content and no snapshots."""
    _, name = registry
    whole = LAYERS * FILES * 4096
    with (
        tmpfs(folder / "disk", f"size={2 * whole + (8 << 20)}") as disk,
        taskd(folder / "t", "--root", str(disk / "root")) as daemon,
    ):
        daemon.root = disk / "root"
        assert pull(daemon, name).returncode == 0
        nothing_is_left(daemon, name)
        used = os.statvfs(disk)
        empty = (used.f_blocks - used.f_bfree) * used.f_frsize
        for part in (0.02, 0.3, 0.7, 1.1, 1.5, 1.9):
            size = empty + int(part * whole)
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            failed = pull(daemon, name)
            assert failed.returncode != 0, (part, failed.stdout)
            assert "full" in failed.stderr or "no space left" in failed.stderr
        size = empty + 3 * whole + (8 << 20)
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        assert pull(daemon, name).returncode == 0
        assert is_whole(daemon, name, folder / "mounted")
        nothing_is_left(daemon, name)
