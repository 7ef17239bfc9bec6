"""Virtual environments for what is installed only to be tested."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["SETTINGS", "environment", "install", "make"]

SETTINGS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_VIRTUALENV": "1",  # nothing is to be installed anywhere else
    "PYTEST_ADDOPTS": "-p no:asyncio",  # an author need not have it
}
"""Of the environment, for the tools of one who writes a shim."""


def make(folder: Path) -> Path:
    """An environment with all that this one has, pip too; its folder of programs."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # As a folder of its own, whose editable installations count, too.
    here = sysconfig.get_path("purelib")
    (site / "tests.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    programs = folder / "bin"
    pip = programs / "pip"
    pip.write_text(f'#!/bin/sh\nexec {programs}/python -m pip "$@"\n')
    pip.chmod(0o755)
    return programs


def install(programs: Path, *folders: Path) -> None:
    """Install distributions, for which all that they need is there."""
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--no-build-isolation"]
    for folder in folders:
        command += ["--editable", str(folder)]
    subprocess.run(command, check=True, env=environment(programs))


def environment(programs: Path) -> dict[str, str]:
    """The process's environment in which a virtual one is active."""
    path = f"{programs}:{os.environ['PATH']}"
    return os.environ | SETTINGS | {"VIRTUAL_ENV": str(programs.parent), "PATH": path}
