"""Descriptors, from and to the messages of several services."""

from __future__ import annotations

from typing import Any

from taskd.metadata import Descriptor
from taskd.proto.containerd import types

__all__ = ["descriptor", "descriptor_message"]

_Message: Any = types.Descriptor  # whose constructor the type checker cannot see


def descriptor(message: types.Descriptor | None) -> Descriptor:
    """What the message says; an empty descriptor if it is absent."""
    found: Any = message or _Message()
    return Descriptor(found.media_type, found.digest, found.size, found.annotations)


def descriptor_message(found: Descriptor) -> types.Descriptor:
    message: types.Descriptor = _Message(
        media_type=found.media_type,
        digest=found.digest,
        size=found.size,
        annotations=dict(found.annotations),
    )
    return message
