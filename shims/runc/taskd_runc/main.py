"""The executable ``containerd-shim-runc-v1``."""

from __future__ import annotations

from typing import NoReturn

from taskd.shim import run
from taskd_runc.container import Runc

__all__ = ["main"]


def main() -> NoReturn:
    run(Runc, "io.taskd.runc.v1")
