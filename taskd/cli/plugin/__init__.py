"""``taskd shim new``: a plugin that can be installed, with its tests."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

from taskd.errors import AlreadyExists, InvalidArgument

__all__ = ["new"]

_NAME = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+\.v[0-9]+")
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "module.py": "$module/__init__.py",
    "test.py": "tests/test_$module.py",
}
"""Where each template goes."""


def new(runtime: str, folder: Path | None = None) -> Path:
    """Write a plugin for `runtime` (``io.example.thing.v1``) that can be installed; its folder.

    By default that is ``shim-thing`` in the current one. Raises `InvalidArgument` for a name that
    a runtime cannot have, `AlreadyExists` if something is in the folder, and OSError.
    """
    if not _NAME.fullmatch(runtime):
        raise InvalidArgument(
            f"{runtime!r} is no name of a runtime: it has to be like io.example.thing.v1, "
            "in small letters, and end in its version",
            verbatim=True,
        )
    if runtime.startswith("io.containerd."):
        raise InvalidArgument(f"{runtime}: names in io.containerd are containerd's", verbatim=True)
    *_, last, version = runtime.split(".")
    distribution = f"shim-{last}"
    folder = folder or Path(distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} exists, and is not an empty folder", verbatim=True)
    words = {
        "runtime": runtime,
        "distribution": distribution,
        "module": distribution.replace("-", "_"),
        "class_name": last.title().replace("-", ""),
        "executable": f"containerd-shim-{last}-{version}",
    }
    for name, place in _FILES.items():
        template = files(__name__).joinpath(f"{name}.template").read_text()
        path = folder / Template(place).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template).substitute(words))
    return folder
