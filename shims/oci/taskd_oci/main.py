"""The executable ``containerd-shim-oci-v1``."""

from __future__ import annotations

from typing import NoReturn

from taskd.shim import run
from taskd_oci.container import Oci

__all__ = ["main"]


def main() -> NoReturn:
    run(Oci, "io.taskd.oci.v1")
