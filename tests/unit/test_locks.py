"""The lock files name what `pyproject.toml` asks for, so that CI and the image have it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, str]:
    """Versions by the names of the packages; each has a hash."""
    found = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "locks" / name).read_text()):
        if match := re.match(r"([\w.-]+)==(\S+)", entry):
            assert "--hash=sha256:" in entry, match[0]
            found[canonicalize_name(match[1])] = match[2]
    return found


def asked(*extras: str) -> list[Requirement]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra in extras or project["optional-dependencies"]:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "extras"),
    [("taskd.txt", ("metrics", "nats", "otel", "uvloop", "wasm")), ("dev.txt", ())],
)
def test_each_requirement_is_locked(name: str, extras: tuple[str, ...]) -> None:
    versions = locked(name)
    for requirement in asked(*extras):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name}: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} is not {version}"


def test_what_is_tested_is_what_runs() -> None:
    assert locked("taskd.txt").items() <= locked("dev.txt").items()
