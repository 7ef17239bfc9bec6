"""Real parts and users: in CI a missing one is a failure; elsewhere it is a reason to skip."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["AS_NOBODY", "BOTH_SHIMS", "MORTAL", "NOBODY", "need"]

BOTH_SHIMS = pytest.mark.parametrize(
    "runc_shim", ["containerd-shim", "own-shim"], indirect=True, scope="module"
)
"""A test of real containers is run with containerd's shim, and with taskd's own.

And, since that is twice, once on each of the engines that carry HTTP/2.
"""

MORTAL = pytest.mark.settings("[shims]\nadopt = false\n")
"""A test of containers that end with their shim, each of which has its own."""

NOBODY = 65534
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    # Wherever Python and this repository are, it is to be able to read them; but nothing else.
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    "--bounding-set=-all,+dac_read_search",
)
"""Before a command: run it without root's rights."""


def need(*programs: str) -> None:
    """Go on only as root and with all of `programs` installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if os.geteuid() != 0:
        reason = "needs root"
    elif missing:
        reason = f"not installed: {', '.join(missing)}"
    else:
        return
    if os.environ.get("CI"):
        pytest.fail(f"in CI nothing is skipped: {reason}")
    pytest.skip(reason)
