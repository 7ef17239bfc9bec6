"""systemd's units are where the wheel takes them from, and say what containers depend on."""

from __future__ import annotations

import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def service(unit: Path) -> dict[str, str]:
    parser = RawConfigParser(delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text())
    return dict(parser["Service"])


def wheels_folder() -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    (folder,) = (source for source, target in data.items() if target == "lib/systemd")
    return ROOT / folder


@pytest.mark.parametrize("who", ["system", "user"])
def test_containers_outlive_the_service(who: str) -> None:
    found = service(wheels_folder() / who / "taskd.service")
    expected = {
        "Type": "notify",
        "ExecStart": "taskd serve",
        "KillMode": "process",
        "Delegate": "yes",
        "LimitNOFILE": "1024:524288",
    }
    assert found.items() >= expected.items()
