"""``taskd shim dev``: which shims a folder has, and how what they write is put together."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from taskd.cli.dev import Blocks, find
from taskd.cli.plugin import new
from taskd.errors import InvalidArgument


def test_a_distribution(tmp_path: Path) -> None:
    (shim,) = find(new("io.example.two-words.v3", tmp_path / "plugin"))
    assert (shim.runtime, shim.executable) == (
        "io.example.two-words.v3",
        "containerd-shim-two-words-v3",
    )
    program = tmp_path / shim.executable
    program.write_text(shim.text)
    program.chmod(0o755)
    done = subprocess.run([program, "-v"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.rglob("plugin/**/__pycache__"))


def test_executables(tmp_path: Path) -> None:
    for name, mode in (
        ("containerd-shim-b-v1", 0o755),
        ("containerd-shim-a-v2", 0o755),
        ("containerd-shim-no-v1", 0o644),
        ("containerd-shim-no", 0o755),
    ):
        (tmp_path / name).touch(mode)
    found = [str(tmp_path / f"containerd-shim-{name}") for name in ("a-v2", "b-v1")]
    assert [(shim.runtime, shim.executable, shim.text) for shim in find(tmp_path)] == [
        (each, each, "") for each in found
    ]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "has no shim"),
        ("", "has no shim"),
        ("[project", r"pyproject.toml: .*\(at "),
        ("project = 3", "its entry points"),
        ('[project.entry-points."taskd.shims"]\nthing = "m:C"', "its entry points"),
        ('[project.entry-points."taskd.shims"]\n"io.x.v1" = "m"', "its entry points"),
        ('[project.entry-points."taskd.shims"]\n"io.x.v1" = 3', "its entry points"),
    ],
)
def test_no_shim(document: str | None, words: str, tmp_path: Path) -> None:
    if document is not None:
        (tmp_path / "pyproject.toml").write_text(document)
    with pytest.raises(InvalidArgument, match=words):
        find(tmp_path)
    with pytest.raises(InvalidArgument, match="has no shim"):
        find(tmp_path / "none")


def test_tracebacks_stay_together() -> None:
    blocks = Blocks()

    def take(name: str, text: str) -> list[list[str]]:
        return list(blocks.take(name, text))

    assert take("a/one", "INFO serving one") == []
    assert take("a/one", "ERROR Start failed") == [["shim a/one: INFO serving one"]]
    assert take("a/one", "Traceback (most recent call last):") == []
    assert take("a/two", "INFO serving two") == []
    assert list(blocks.settled()) == []
    assert take("a/one", "ValueError: x") == []
    assert list(blocks.settled()) == [["shim a/two: INFO serving two"]]
    assert list(blocks.settled()) == [
        ["shim a/one: ERROR Start failed", "Traceback (most recent call last):", "ValueError: x"]
    ]
    assert list(blocks.settled()) == []
