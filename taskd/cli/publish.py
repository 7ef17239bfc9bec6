"""``taskd publish``: what older shims execute, as their ``-publish-binary``, for each event.

Source: containerd's ``cmd/containerd/command/publish.go``.
"""

from __future__ import annotations

from grpclib.client import Channel
from grpclib.exceptions import GRPCError

from taskd.codec import MalformedMessage, decode
from taskd.errors import InvalidArgument, from_status
from taskd.proto.containerd.services.events.v1 import EventsStub, PublishRequest
from taskd.proto.google.protobuf import Any

__all__ = ["publish"]

TIMEOUT = 10.0
"""Seconds that the daemon has to take the event."""


async def publish(address: str, namespace: str, topic: str, event: bytes) -> None:
    """Publish `event`, a serialised ``google.protobuf.Any``, through the daemon at `address`.

    Raises `InvalidArgument` if it is none, OSError if there is no daemon, and the error that the
    daemon answers.
    """
    try:
        message = decode(Any, event)
    except MalformedMessage as exc:
        raise InvalidArgument(f"standard input is no google.protobuf.Any: {exc}") from exc
    async with Channel(path=address.removeprefix("unix://")) as channel:
        try:
            await EventsStub(channel).publish(
                PublishRequest(topic=topic, event=message),
                timeout=TIMEOUT,
                metadata={"containerd-namespace": namespace},
            )
        except GRPCError as exc:
            raise from_status(exc.status.value, exc.message or "") from exc
