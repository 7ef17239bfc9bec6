"""What a `Connection` makes of the bytes that arrive."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

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


@dataclass(slots=True)
class RequestReceived:
    """A call begins; in state `OPEN`, the client goes on to send data."""

    stream_id: int
    request: Request
    state: StreamState


@dataclass(slots=True)
class ResponseReceived:
    """A call's answer, with which its stream is finished."""

    stream_id: int
    response: Response


@dataclass(slots=True)
class DataReceived:
    """A message on a stream, or None if only its end is announced; `end`: it is the last one."""

    stream_id: int
    payload: bytes | None
    end: bool


@dataclass(slots=True)
class StreamFailed:
    """The peer broke the protocol on a stream, which is thereby finished."""

    stream_id: int
    error: TaskdError


@dataclass(slots=True)
class ConnectionEnded:
    """The last event: no more bytes are taken. `reason` is None if the peer just hung up."""

    reason: ProtocolError | None


Event: TypeAlias = (
    RequestReceived | ResponseReceived | DataReceived | StreamFailed | ConnectionEnded
)
