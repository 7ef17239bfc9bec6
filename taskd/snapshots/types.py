"""What is known of a snapshot. Source: containerd's ``snapshots/snapshotter.go``."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["GID_MAPPING_LABEL", "REF_LABEL", "UID_MAPPING_LABEL", "Info", "Kind", "Usage"]

REF_LABEL = "containerd.io/snapshot.ref"
"""Label of Prepare: the name under which what is prepared will be committed."""

UID_MAPPING_LABEL = "containerd.io/snapshot/uidmapping"
GID_MAPPING_LABEL = "containerd.io/snapshot/gidmapping"


class Kind(enum.IntEnum):
    """The numbers are those of ``containerd.services.snapshots.v1.Kind``."""

    VIEW = 1
    """To be read only, until it is removed."""
    ACTIVE = 2
    """To be written to, until it is committed or removed."""
    COMMITTED = 3
    """Never changes; others may be made on it."""


@dataclass(frozen=True, slots=True)
class Info:
    """`parent` is a name, empty without one; times are in nanoseconds since the epoch."""

    name: str
    kind: Kind = Kind.ACTIVE
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class Usage(NamedTuple):
    """What a snapshot takes on the disk beside its parents. `size` is in bytes."""

    size: int = 0
    inodes: int = 0
