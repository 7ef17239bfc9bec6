"""``taskd shim new``: names that it takes, and what it refuses to overwrite."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from taskd.cli.main import main
from taskd.cli.plugin import new
from taskd.errors import AlreadyExists, InvalidArgument


def test_what_is_written(tmp_path: Path) -> None:
    folder = new("io.example.big-thing.v12", tmp_path / "a/b")
    assert folder == tmp_path / "a/b"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "shim_big_thing/__init__.py",
        "tests/test_shim_big_thing.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"containerd-shim-big-thing-v12": "shim_big_thing:main"}
    entry = {"io.example.big-thing.v12": "shim_big_thing:BigThing"}
    assert project["entry-points"]["taskd.shims"] == entry
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_it_is_named_after_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shim", "new", "io.example.thing.v1"]) == 0
    assert capsys.readouterr().out == "written: shim-thing\n"
    assert (tmp_path / "shim-thing/pyproject.toml").exists()


@pytest.mark.parametrize(
    "name",
    ["", "thing", "thing.v1", "io.example.thing", "io.Example.thing.v1", "io.example.thing.1",
     "io..thing.v1", "io.example./etc.v1", "io.example.th ing.v1", "io.example.thing.v1\n"],
)  # fmt: skip
def test_no_name_of_a_runtime(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="has to be like io.example.thing.v1"):
        new(name, tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()


def test_names_of_containerds(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="containerd's"):
        new("io.containerd.thing.v1", tmp_path / "plugin")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(AlreadyExists, match=str(folder)):
            new("io.example.thing.v1", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert new("io.example.thing.v1", tmp_path) == tmp_path


def test_a_refusal_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shim", "new", "Thing", "--folder", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.startswith("taskd: 'Thing' is no name of a runtime")
