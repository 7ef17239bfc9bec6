"""Executables that are Python functions of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["write_executable"]


def write_executable(path: Path, module: str, call: str) -> Path:
    """Write an executable that calls a function of a module of these tests; returns its path."""
    tests = Path(__file__).parents[1]
    path.write_text(
        f"#!{sys.executable}\n"
        f"import sys\nsys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        f"from {module} import run\n{call}\n"
    )
    path.chmod(0o755)
    return path
