"""Which sandbox a container is in, and what is on disk of that for whoever cleans up.

A daemon leaves the sandbox's id in the container's bundle. In the sandbox's own bundle there is
a list of the containers that were made in it, for a daemon that knows only of the sandbox.
Source: containerd's ``core/runtime/v2/shim_manager.go``, ``Start``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["containers", "note", "note_container", "of"]

_SANDBOX = "sandbox"
_CONTAINERS = "containers"


def of(bundle: Path) -> str:
    """Id of the sandbox that the container of `bundle` is in, or empty."""
    try:
        return (bundle / _SANDBOX).read_text().strip()
    except (OSError, ValueError):
        return ""


def note(bundle: Path) -> None:
    """Write down that this bundle is a sandbox's. Raises OSError."""
    (bundle / _CONTAINERS).touch()


def note_container(sandbox: Path, bundle: Path) -> None:
    """Write down, in the bundle `sandbox`, that a container is made in it."""
    with suppress(OSError), (sandbox / _CONTAINERS).open("a") as file:
        file.write(f"{bundle}\n")


def containers(bundle: Path) -> list[Path] | None:
    """Bundles of the containers that were made in a sandbox and are there still.

    None if `bundle` is not a sandbox's.
    """
    try:
        lines = dict.fromkeys((bundle / _CONTAINERS).read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Another container may have come under the name of one that is gone.
    return [each for line in lines if of(each := Path(line)) == bundle.name]
