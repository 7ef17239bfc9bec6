from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from taskd import folders
from taskd.errors import FailedPrecondition
from taskd.sockets import listening

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_what_is_made_has_the_same_mode_whatever_the_umask(tmp_path: Path) -> None:
    root, state = tmp_path / "a/b/root", tmp_path / "c/d/state"
    with folders.own(root, state):
        assert mode(root) == 0o700
        assert [mode(each) for each in (state, state.parent, state.parent.parent)] == [0o711] * 3
        assert mode(root / "lock") == mode(state / "lock") == 0o600


@pytest.mark.parametrize("before", [0o711, 0o755, 0o750, 0o700])
def test_nobody_else_reads_a_root_folder_that_was_there(tmp_path: Path, before: int) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    for folder in (root, state):
        folder.mkdir()
        folder.chmod(before)
    with folders.own(root, state):
        assert (mode(root), mode(state)) == (0o700, before)


def test_each_of_both_folders_has_one_daemon(tmp_path: Path) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    with folders.own(root, state):
        for others, what in (((root, tmp_path / "s"), root), ((tmp_path / "r", state), state)):
            words = f"another taskd .pid {os.getpid()}. uses the (root|state) folder {what}$"
            with pytest.raises(FailedPrecondition, match=words), folders.own(*others):
                pass
    with folders.own(root, state):
        pass


def test_one_folder_for_both(tmp_path: Path) -> None:
    folder, link = tmp_path / "one", tmp_path / "link"
    link.symlink_to(folder)
    for same in (folder, link):
        with folders.own(folder, same):
            pass


@pytest.mark.parametrize("kind", ["root", "state"])
@pytest.mark.parametrize("bits", [0o020, 0o002, 0o022])
def test_folders_into_which_others_may_write(tmp_path: Path, kind: str, bits: int) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind).chmod(0o755 | bits)
    with (
        pytest.raises(FailedPrecondition, match=f"others may write into the {kind} folder"),
        folders.own(tmp_path / "root", tmp_path / "state"),
    ):
        pass
    assert not (tmp_path / kind / "lock").exists()


@as_root
@pytest.mark.parametrize("kind", ["root", "state"])
@pytest.mark.parametrize("what", ["folder", "link", "lock"])
def test_what_is_somebody_elses(tmp_path: Path, kind: str, what: str) -> None:
    folder = tmp_path / kind
    if what == "link":
        (tmp_path / "target").mkdir()
        folder.symlink_to(tmp_path / "target")
        os.lchown(folder, NOBODY, NOBODY)
    else:
        folder.mkdir()
        if what == "lock":
            (folder / "lock").touch()
            os.chown(folder / "lock", NOBODY, NOBODY)
        else:
            os.chown(folder, NOBODY, NOBODY)
    with (
        pytest.raises(FailedPrecondition, match=f"{folder} belongs to user {NOBODY}, and not to"),
        folders.own(tmp_path / "root", tmp_path / "state"),
    ):
        pass


def test_a_link_of_our_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    with folders.own(tmp_path / "root", tmp_path / "state"):
        assert (tmp_path / "disk/lock").exists()


@pytest.mark.parametrize("kind", ["root", "state"])
def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "lock").symlink_to(precious)
    with (
        pytest.raises(FailedPrecondition, match=f"lock in the {kind} folder"),
        folders.own(tmp_path / "root", tmp_path / "state"),
    ):
        pass
    assert precious.read_text() == "as it was"


@pytest.mark.parametrize(
    ("bits", "owner", "words"),
    [
        (0o755, 0, ""),
        (0o775, 0, ""),
        (0o1777, 0, ""),
        (0o777, 0, "everybody may write into"),
        (0o755, NOBODY, f"belongs to user {NOBODY}"),
        (0o1777, NOBODY, f"belongs to user {NOBODY}"),
    ],
)
@as_root
def test_a_socket_is_not_made_where_others_could_replace_it(
    tmp_path: Path, bits: int, owner: int, words: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(bits)
    os.chown(folder, owner, owner)
    refused = pytest.raises(FailedPrecondition, match=words) if words else nullcontext()
    with refused, listening(folder / "d.sock"):
        assert not words
