"""``taskd publish``: what older shims execute, as their ``-publish-binary``, for each event.

A shim waits for it, so it is quick: no event loop and no generated code, but one ttrpc call on a
blocking socket. Source: containerd's ``cmd/containerd/command/publish.go``.
"""

from __future__ import annotations

import socket
import time

from taskd import wire
from taskd.errors import Unavailable, from_status
from taskd.ttrpc.frames import Decoder, Frame, encode
from taskd.ttrpc.messages import Request, Response

__all__ = ["publish"]

TIMEOUT = 10.0
"""Seconds that the daemon has to take the event."""

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_STREAM = 1
_REQUEST = 1


def publish(address: str, namespace: str, topic: str, event: bytes) -> None:
    """Publish `event`, a serialised ``google.protobuf.Any``, through the daemon at `address`.

    Raises `InvalidArgument` if it is none, OSError if there is no daemon, `Unavailable` if it goes
    away, and the error that the daemon answers.
    """
    wire.fields(event)
    request = Request(_SERVICE, "Forward", _forward_request(namespace, topic, event))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(f"{address.removeprefix('unix://')}.ttrpc")
        connection.sendall(encode(_STREAM, _REQUEST, 0, request.encode()))
        response = Response.decode(_receive(connection))
    if response.code:
        raise from_status(response.code, response.message)


def _forward_request(namespace: str, topic: str, event: bytes) -> bytes:
    """A ForwardRequest with an Envelope that happens now."""
    seconds, nanos = divmod(time.time_ns(), 10**9)
    timestamp = b"".join(
        wire.varint(wire.tag(number, wire.VARINT)) + wire.varint(value)
        for number, value in ((1, seconds), (2, nanos))
    )
    envelope = b"".join(
        wire.bytes_field(number, value)
        for number, value in (
            (1, timestamp),
            (2, namespace.encode()),
            (3, topic.encode()),
            (4, event),
        )
    )
    return wire.bytes_field(1, envelope)


def _receive(connection: socket.socket) -> bytes:
    decoder = Decoder()
    while data := connection.recv(65536):
        for frame in decoder.feed(data):
            if isinstance(frame, Frame):
                return frame.payload
    raise Unavailable("the daemon closed the connection")
