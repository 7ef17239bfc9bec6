"""Who knows whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DOCUMENTED = {
    "grpclib",
    "grpclib.client",
    "grpclib.const",
    "grpclib.encoding.base",
    "grpclib.events",
    "grpclib.exceptions",
    "grpclib.health",
    "grpclib.metadata",
    "grpclib.reflection",
    "grpclib.server",
}
"""What grpclib says is there for everybody."""

INSIDE = {"__connect__", "__dispatch__", "_h2_connection"}
"""What its objects have for its own use."""


def names(tree: ast.AST) -> Iterator[str]:
    """Of everything that a module imports, wherever it does, and of grpclib's inside."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=found):
                yield from (each.name for each in found)
            case ast.ImportFrom(module=str(module), names=found, level=0):
                yield from (f"{module}.{each.name}" for each in found)
            case ast.Attribute(attr=name) if name in INSIDE:
                yield f"grpclib.{name}"


def private(name: str) -> bool:
    top, *rest = name.split(".")
    if top in ("h2", "hpack", "hyperframe", "ngh2"):
        return True
    if top != "grpclib":
        return False
    documented = any(name == each or name.startswith(f"{each}.") for each in DOCUMENTED - {top})
    return any(part.startswith("_") for part in rest) or not (documented or len(rest) < 2)


def test_only_the_wing_knows_grpclibs_inside() -> None:
    folders = [ROOT / "taskd", ROOT / "shims", ROOT / "tests", ROOT / "protos"]
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for folder in folders
        for file in folder.rglob("*.py")
        if not file.is_relative_to(ROOT / "taskd/grpc")
        and not file.is_relative_to(ROOT / "tests/unit/grpc")
        for name in names(ast.parse(file.read_text()))
        if private(name)
    }
    assert not found


def test_the_client_knows_nothing_of_the_daemon() -> None:
    """Whoever speaks to one of containerd's loads nothing of ours."""
    ground = {path.stem for path in (ROOT / "taskd").glob("*.py")} - {"config", "daemon"}
    allowed = {"client", "proto", "grpc", "cgroups", *ground}
    found = {
        f"{file.name}: {name}"
        for file in (ROOT / "taskd/client").rglob("*.py")
        for name in names(ast.parse(file.read_text()))
        if name.startswith("taskd.") and name.split(".")[1] not in allowed
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("from grpclib._typing import IServable", True),
        ("def f():\n    import h2.settings", True),
        ("from grpclib.protocol import H2Protocol", True),
        ("from grpclib.server import _abort", True),
        ("channel.__connect__()", True),
        ("import ngh2", True),
        ("from grpclib.client import Channel\nfrom grpclib import GRPCError", False),
        ("import grpclib.server\nfrom taskd.ngh2 import thing", False),
    ],
)
def test_the_check_itself(source: str, caught: bool) -> None:
    assert any(map(private, names(ast.parse(source)))) is caught


@pytest.mark.parametrize("module", ["taskd.client", "taskd.client.sync", "taskd.testing.plugin"])
def test_what_costs_time_is_loaded_by_those_who_speak(module: str) -> None:
    """Each pytest loads the plugin, and each command line the client."""
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    heavy = {"grpclib", "betterproto2", "h2", "asyncio", "taskd.daemon", "taskd.client.client"}
    # pytest itself has asyncio, where one of its plugins does.
    allowed = {"asyncio"} if "plugin" in module else set()
    assert heavy & set(done.stdout.split()) <= allowed


def test_a_process_for_a_layer_loads_little() -> None:
    """It imports what it does for each layer anew."""
    path = [each for each in sys.path if each]
    script = f"import sys; sys.path = {path}; import taskd.layers.process, taskd.layers.apply"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{script}; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.split())
    assert "taskd.layers.streams" in loaded
    assert not {"site", "typing", "pathlib", "re", "json", "enum", "isal", "backports"} & loaded
