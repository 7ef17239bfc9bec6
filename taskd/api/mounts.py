"""Mounts, from and to the messages of several services."""

from __future__ import annotations

from collections.abc import Iterable

from taskd.proto.containerd.types import Mount as MountMessage
from taskd.types import Mount

__all__ = ["mount_messages", "mounts"]


def mounts(messages: Iterable[MountMessage]) -> tuple[Mount, ...]:
    return tuple(
        Mount(each.type, each.source, each.target, tuple(each.options)) for each in messages
    )


def mount_messages(found: Iterable[Mount]) -> list[MountMessage]:
    return [
        MountMessage(
            type=each.type, source=each.source, target=each.target, options=list(each.options)
        )
        for each in found
    ]
