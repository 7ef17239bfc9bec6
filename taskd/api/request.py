"""What a handler may know of the request it serves, besides its message."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from taskd import identifiers
from taskd.errors import FailedPrecondition, InvalidArgument
from taskd.grpc import NAMESPACE_HEADER

if TYPE_CHECKING:
    from taskd.grpc.calls import StreamingCall, UnaryCall

    Stream = UnaryCall | StreamingCall

__all__ = [
    "LEASE_HEADER",
    "NAMESPACE_HEADER",
    "current",
    "lease",
    "namespace",
    "namespace_if_any",
    "subject",
]

LEASE_HEADER = "containerd-lease"

current: ContextVar[Stream] = ContextVar("current")
"""The stream of the call that the running handler serves."""

subject: ContextVar[str] = ContextVar("subject", default="")
"""What the call is about, for the log, once a handler has said so."""


def namespace_if_any() -> str:
    """As the client has sent it, which may be anything; empty if it has sent none."""
    metadata = current.get().metadata
    value = metadata.get(NAMESPACE_HEADER, "") if metadata is not None else ""
    return value if isinstance(value, str) else value.decode(errors="replace")


def namespace() -> str:
    """The namespace that the call is made in.

    Raises `FailedPrecondition` without one, `InvalidArgument` for one that is no identifier
    (containerd: ``namespaces.NamespaceRequired``).
    """
    name = namespace_if_any()
    if not name:
        raise FailedPrecondition("namespace is required")
    try:
        identifiers.validate(name)
    except InvalidArgument as exc:
        raise exc.within("namespace validation") from None
    return name


def lease() -> str | None:
    """The lease that the call is made under, if any (containerd: ``leases/grpc.go``)."""
    metadata = current.get().metadata
    value = metadata.get(LEASE_HEADER) if metadata is not None else None
    return value.decode(errors="replace") if isinstance(value, bytes) else value
