"""Messages as payloads: how a handler reads what it is called with, as Go's services do."""

from __future__ import annotations

from typing import TypeVar

import betterproto2

from taskd import codec
from taskd.errors import Internal

__all__ = ["unmarshal"]

M = TypeVar("M", bound=betterproto2.Message)


def unmarshal(message_type: type[M], payload: bytes) -> M:
    """The message that a call carries.

    Raises `Internal` for a payload that is none (ttrpc's ``services.go``, ``protoUnmarshal``).
    """
    try:
        return codec.decode(message_type, payload)
    except codec.MalformedMessage as exc:
        message = f"ttrpc: error unmarshalling payload: {exc.reason}"
        raise Internal(message, verbatim=True) from None
