"""What a daemon notes down for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.survey import Note, note, survey

SHIM = Path("/usr/bin/containerd-shim-thing-v1")
BOOTSTRAP = Bootstrap("unix:///run/containerd/s/1")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "state/default/one"
    folder.mkdir(parents=True)
    return Bundle("default", "one", folder)


def test_what_is_noted_is_found(bundle: Bundle, tmp_path: Path) -> None:
    note(bundle, SHIM, BOOTSTRAP)
    ((found, noted),) = survey(tmp_path / "state", tmp_path / "root")
    assert found == bundle
    assert (noted.binary(), noted.bootstrap()) == (str(SHIM), BOOTSTRAP)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_daemon_that_is_killed_leaves_no_half_of_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    done: list[Path] = []
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise OSError("killed")
        done.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(OSError, match="killed"):
        note(bundle, SHIM, BOOTSTRAP)
    with pytest.raises(FileNotFoundError):
        Note(bundle).binary()
