"""The executable ``containerd-shim-oci-v1``."""

from __future__ import annotations

from taskd.shim import run
from taskd_oci.container import Oci

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    run(Oci, "io.taskd.oci.v1")
