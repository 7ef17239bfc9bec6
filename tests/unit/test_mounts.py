"""Mounting into a root filesystem that somebody else has made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.real import need

from taskd import mounts, rooted


class Places:
    """A root filesystem, and a folder of the host's beside it."""

    def __init__(self, folder: Path) -> None:
        self.host = folder / "host"
        self.root = folder / "rootfs"
        self.host.mkdir()
        self.root.mkdir()
        (self.root / "data").mkdir()
        (self.root / "up").symlink_to("../host")
        (self.root / "absolute").symlink_to(self.host)
        (self.root / "inner").symlink_to("/data")


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    need("mount")
    yield Places(tmp_path)
    mounts.unmount_below(tmp_path)


@pytest.mark.parametrize("inside", ["data", "/data", "../data", "/../../data", "inner", "/inner"])
@pytest.mark.parametrize(
    ("kind", "source", "options"),
    [("tmpfs", "tmpfs", ["ro"]), ("none", "SOURCE", ["rbind", "ro", "rprivate"])],
)
def test_a_place_in_it(
    places: Places, tmp_path: Path, inside: str, kind: str, source: str, options: list[str]
) -> None:
    (tmp_path / "SOURCE").mkdir()
    source = source.replace("SOURCE", str(tmp_path / "SOURCE"))
    mounts.mount(kind, source, places.root, options, inside=inside)
    assert mounts.mounts_below(tmp_path) == [places.root / "data"]
    # All that is done to the mount is done to it, and not to what is below.
    assert os.statvfs(places.root / "data").f_flag & os.ST_RDONLY
    mounts.unmount_below(places.root)
    assert mounts.mounts_below(tmp_path) == []


@pytest.mark.parametrize("inside", ["up", "absolute", "/up", "absolute/", "none"])
def test_no_link_leads_out_of_it(places: Places, tmp_path: Path, inside: str) -> None:
    with pytest.raises(FileNotFoundError):
        mounts.mount("tmpfs", "tmpfs", places.root, [], inside=inside)
    assert mounts.mounts_below(tmp_path) == []
    # Where it leads in the container it may.
    (places.root / "host").mkdir()
    (places.root / str(places.host).lstrip("/")).mkdir(parents=True)
    if inside != "none":
        mounts.mount("tmpfs", "tmpfs", places.root, [], inside=inside)
        (point,) = mounts.mounts_below(tmp_path)
        assert point.is_relative_to(places.root)


def test_mount_takes_no_source_for_an_option(places: Places, tmp_path: Path) -> None:
    """What mount(8) is left with: it says that there is no such file."""
    with pytest.raises(OSError, match=r"--version"):
        mounts.mount("ext4", "--version", places.root, ["loop"])
    assert mounts.mounts_below(tmp_path) == []


def test_files_of_it(places: Places) -> None:
    (places.host / "secret").write_text("host's")
    (places.root / "data" / "file").write_text("image's")
    (places.root / "link").symlink_to("/data/file")
    os.mkfifo(places.root / "fifo")
    for path in ("data/file", "/data/file", "link", "/inner/file", "../data/file"):
        with os.fdopen(rooted.open_file(places.root, path)) as file:
            assert file.read() == "image's"
    for path in ("up/secret", "absolute/secret", "none", "data", "fifo", "/"):
        with pytest.raises(OSError, match=r"\[Errno"):
            rooted.open_file(places.root, path)
    with rooted.opened(places.root, "inner") as place:
        assert stat.S_ISDIR(place.stat().st_mode)
        assert place.resolve() == places.root / "data"
