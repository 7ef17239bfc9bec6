"""taskd as it was at another commit, in a virtual environment of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import venv
from harness.daemons import Taskd

__all__ = ["daemon"]

ROOT = Path(__file__).parents[2]


@contextmanager
def daemon(folder: Path, commit: str) -> Iterator[Taskd | None]:
    """It runs, with the libraries that this one has; without a commit there is none."""
    if not commit:
        yield None
        return
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True
    )
    subprocess.run(["tar", "-xC", str(source)], input=archive.stdout, check=True)
    programs = venv.make(folder / "venv")
    shims = [file.parent for file in source.glob("shims/*/pyproject.toml")]
    venv.install(programs, source, *shims)
    with _Before(folder / "d", programs) as running:
        yield running


class _Before(Taskd):
    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder, "--log-level", "warn")
        self.programs = programs

    def command(self) -> list[str]:
        _, *arguments = super().command()
        return [str(self.programs / "python"), "-P", *arguments]  # not what is here
