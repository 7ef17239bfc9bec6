"""What a service of a shim answers with, whatever it is about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import betterproto2

from taskd import mounts
from taskd.codec import encode
from taskd.errors import TaskdError, Unknown
from taskd.proto.containerd.types import Mount
from taskd.ttrpc import CallContext, Handler, unmarshal

__all__ = ["mount_rootfs", "unary"]

_Request = TypeVar("_Request", bound=betterproto2.Message)
_WORDS = 8192
"""Characters of an error, which gRPC sends in a header: clients refuse long ones."""


def unary(
    request_type: type[_Request],
    function: Callable[[_Request], Awaitable[betterproto2.Message]],
) -> Handler:
    """What a ttrpc server calls, from a function of messages."""

    async def handler(context: CallContext, payload: bytes) -> bytes:
        try:
            return encode(await function(unmarshal(request_type, payload)))
        except TaskdError as exc:
            words = exc.message
            if len(words) <= _WORDS:
                raise
            # A runtime repeats what it has been given.
            words = f"{words[: _WORDS // 2]} … {words[-_WORDS // 2 :]}"
            raise type(exc)(words, verbatim=True) from exc

    return handler


def mount_rootfs(rootfs: Iterable[Mount], target: Path) -> None:
    """Mount on `target`, which is made, what a client has given. Raises `Unknown`, OSError."""
    target.mkdir(mode=0o711, exist_ok=True)
    for each in rootfs:
        try:
            mounts.mount(each.type, each.source, target, each.options, inside=each.target)
        except OSError as exc:
            raise Unknown(
                f"failed to mount rootfs component: {(exc.strerror or str(exc)).lower()}"
            ) from exc
