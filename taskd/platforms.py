"""This machine in the words of Go, which are those of images and of containerd."""

from __future__ import annotations

import platform

__all__ = ["here"]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def here() -> tuple[str, str]:
    """Operating system and architecture."""
    machine = platform.machine()
    return "linux", _ARCHITECTURES.get(machine, machine)
