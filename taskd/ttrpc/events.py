"""What a `Connection` makes of the bytes that arrive."""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from taskd.errors import TaskdError
from taskd.ttrpc.frames import ProtocolError
from taskd.ttrpc.messages import Request, Response

__all__ = [
    "ConnectionEnded",
    "DataReceived",
    "Event",
    "RequestReceived",
    "ResponseReceived",
    "StreamFailed",
    "StreamState",
]


class StreamState(enum.Enum):
    """State of a stream that is not finished; one that is has left the table.

    A stream is finished when the server has said its last, whatever the client still wants to
    say: ttrpc has no server that listens on after its answer.
    """

    UNARY = enum.auto()
    """One request, one response, and no data."""

    OPEN = enum.auto()
    """Both sides may send data."""

    HALF_CLOSED = enum.auto()
    """The client has said all it wanted; the server may send data."""


class RequestReceived(NamedTuple):
    """A call begins; in state `OPEN`, the client goes on to send data."""

    stream_id: int
    request: Request
    state: StreamState


class ResponseReceived(NamedTuple):
    """A call's answer, with which its stream is finished."""

    stream_id: int
    response: Response


class DataReceived(NamedTuple):
    """A message on a stream, or None if only its end is announced; `end`: it is the last one."""

    stream_id: int
    payload: bytes | None
    end: bool


class StreamFailed(NamedTuple):
    """The peer broke the protocol on a stream, which is thereby finished."""

    stream_id: int
    error: TaskdError


class ConnectionEnded(NamedTuple):
    """The last event: no more bytes are taken. `reason` is None if the peer just hung up."""

    reason: ProtocolError | None


Event: TypeAlias = (
    RequestReceived | ResponseReceived | DataReceived | StreamFailed | ConnectionEnded
)
