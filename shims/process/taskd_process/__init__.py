"""``io.taskd.process.v1``: a container's process as a plain process of the host."""

from __future__ import annotations

from typing import NoReturn

from taskd.shim import run
from taskd_process.container import HostProcess

__all__ = ["HostProcess", "main"]


def main() -> NoReturn:
    run(HostProcess, "io.taskd.process.v1")
