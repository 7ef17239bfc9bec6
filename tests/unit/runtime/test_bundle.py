from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from taskd.errors import AlreadyExists, InvalidArgument
from taskd.runtime.bundle import Bundle


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "state", tmp_path / "root"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_layout_and_permissions_are_containerds(folders: tuple[Path, Path]) -> None:
    state, root = folders
    bundle = Bundle.create(state, root, "ns", "one", b'{"a": 1}')
    assert bundle.path == state / "ns/one"
    assert sorted(path.name for path in bundle.path.iterdir()) == ["config.json", "rootfs", "work"]
    assert (bundle.path / "config.json").read_bytes() == b'{"a": 1}'
    assert (bundle.path / "work").readlink() == root / "ns/one"
    assert [mode(path) for path in (bundle.path, bundle.rootfs, root / "ns/one")] == [
        *(0o700, 0o711, 0o711),
    ]
    assert mode(state / "ns") == 0o711


def test_a_second_one_is_refused_and_the_first_is_whole(folders: tuple[Path, Path]) -> None:
    first = Bundle.create(*folders, "ns", "one", b"{}")
    with pytest.raises(AlreadyExists, match=r"mkdir .*/ns/one: file exists"):
        Bundle.create(*folders, "ns", "one", b"{}")
    assert (first.path / "config.json").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a" * 77, "-a", "a\0b", "é"])
def test_a_bad_id_reaches_no_path(folders: tuple[Path, Path], name: str) -> None:
    with pytest.raises(InvalidArgument):
        Bundle.create(*folders, "ns", name, b"{}")
    assert not folders[0].exists()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"linux": [1]}', "gidMappings is none"),
        (b'{"linux": {"gidMappings": 5}}', "gidMappings is none"),
        (b'{"linux": {"gidMappings": [5]}}', "gidMappings is none"),
        (b'{"linux": {"gidMappings": [{"hostID": "x"}]}}', "gidMappings is none"),
    ],
    ids=lambda given: str(given)[:20],
)
def test_a_spec_that_is_none_leaves_nothing(
    folders: tuple[Path, Path], spec: bytes, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Bundle.create(*folders, "ns", "one", spec)
    assert not folders[0].exists()


def test_a_work_folder_of_an_earlier_task_is_emptied(folders: tuple[Path, Path]) -> None:
    stray = folders[1] / "ns/one/stray"
    stray.parent.mkdir(parents=True)
    stray.write_text("")
    Bundle.create(*folders, "ns", "one", b"{}")
    assert not stray.exists()


def test_a_failure_half_way_leaves_nothing(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        Bundle.create(*folders, "ns", "one", b"{}")
    assert list(folders[0].glob("*/*")) == list(folders[1].glob("*/*")) == []


def test_a_remapped_root_group_may_enter(folders: tuple[Path, Path]) -> None:
    mapping = {"containerID": 0, "hostID": Path.home().stat().st_gid or 1000, "size": 1}
    spec = json.dumps({"linux": {"gidMappings": [mapping]}}).encode()
    try:
        bundle = Bundle.create(*folders, "ns", "one", spec)
    except PermissionError:
        pytest.skip("needs root to change a folder's group")
    assert mode(bundle.path) == 0o710
    assert bundle.path.stat().st_gid == mapping["hostID"]


def test_delete_removes_bundle_and_work_folder(folders: tuple[Path, Path]) -> None:
    bundle = Bundle.create(*folders, "ns", "one", b"{}")
    bundle.delete()
    assert list(folders[0].glob("*/*")) == list(folders[1].glob("*/*")) == []
    bundle.delete()  # once more is no error


def test_delete_keeps_what_is_in_the_root_filesystem(folders: tuple[Path, Path]) -> None:
    """Should an unmount ever be missed, somebody's files must not be removed through it."""
    bundle = Bundle.create(*folders, "ns", "one", b"{}")
    precious = bundle.rootfs / "precious"
    precious.write_text("")
    with pytest.raises(OSError, match="not empty"):
        bundle.delete()
    assert precious.exists()
