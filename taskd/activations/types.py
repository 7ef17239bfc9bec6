"""What is known of an activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskd.types import Mount

__all__ = ["Activation", "Active"]


@dataclass(frozen=True, slots=True)
class Active:
    """A mount that was made; `at` is when, in nanoseconds since the epoch."""

    mount: Mount
    point: str
    """Where it is mounted; of a loop device, a link to it."""
    at: int


@dataclass(frozen=True, slots=True)
class Activation:
    name: str
    active: tuple[Active, ...] = ()
    """What has been mounted, in order."""
    system: tuple[Mount, ...] = ()
    """What is left to be mounted by whoever wants the files."""
    labels: Mapping[str, str] = field(default_factory=dict)
