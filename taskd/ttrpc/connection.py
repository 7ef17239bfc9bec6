"""The protocol without I/O: what to make of bytes that arrive, and which bytes to send.

Whoever owns the socket hands what it reads to `Connection.receive_data`, acts on the events that
this returns, and writes what `Connection.data_to_send` returns. A peer that breaks the protocol
gets its own error where only one stream is concerned, as in Go: for a client that is whatever makes
up a frame. Otherwise the last event is a `ConnectionEnded` with the reason. Nothing that arrives
makes a receiving method raise.

Source: ttrpc's ``PROTOCOL.md``, ``server.go`` and ``client.go``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from taskd.errors import (
    Code,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TaskdError,
    Unknown,
)
from taskd.ttrpc.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamFailed,
    StreamState,
)
from taskd.ttrpc.frames import (
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    Decoder,
    Frame,
    FrameType,
    OversizedFrame,
    ProtocolError,
    check_size,
    encode,
    oversized,
)
from taskd.ttrpc.messages import Request, Response

__all__ = [
    "ClientConnection",
    "Connection",
    "ConnectionClosed",
    "ServerConnection",
    "StreamClosed",
]

logger = logging.getLogger("taskd.ttrpc")

_LAST_STREAM_ID: Final = (1 << 32) - 1

# An error's text must fit into a frame, whatever was put into it.
_MAX_STATUS_MESSAGE: Final = 1 << 16

# As plain numbers: a member of an enum takes longer to look up than a frame to decode.
_REQUEST: Final = int(FrameType.REQUEST)
_RESPONSE: Final = int(FrameType.RESPONSE)
_DATA: Final = int(FrameType.DATA)


class ConnectionClosed(Unknown):
    """The connection is gone, or went while the call was under way (Go: ``ErrClosed``).

    What containerd tells its client of it is of no known kind.
    """

    def __init__(self, message: str = "ttrpc: closed: unknown", *, verbatim: bool = True) -> None:
        super().__init__(message, verbatim=verbatim)


class StreamClosed(FailedPrecondition):
    """The stream is closed for sending (Go: ``ErrStreamClosed``)."""

    def __init__(self, message: str = "ttrpc: stream closed", *, verbatim: bool = True) -> None:
        super().__init__(message, verbatim=verbatim)


class Connection:
    """What both roles have in common."""

    def __init__(self, decoder: Decoder) -> None:
        self.closed = False
        # Streams that are not finished.
        self.streams: dict[int, StreamState] = {}
        self._decoder = decoder
        # Frames that `data_to_send` has not handed over yet.
        self._outgoing: list[bytes] = []

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` amounts to; the iterator must be exhausted.

        Each event is to be acted on before the next is asked for: an answer that is given to one
        frame decides what the next one is.
        """
        if self.closed:
            return
        try:
            for frame in self._decoder.feed(data):
                if isinstance(frame, Frame):
                    event = self._receive(frame)
                else:
                    event = self._receive_oversized(frame)
                if event is not None:
                    yield event
                    if self.closed:
                        return
        except ProtocolError as exc:
            yield self._end(exc)

    def receive_eof(self) -> list[Event]:
        """What it amounts to that no more bytes arrive."""
        if self.closed:
            return []
        try:
            self._decoder.feed_eof()
        except ProtocolError as exc:
            return [self._end(exc)]
        return [self._end(None)]

    def data_to_send(self) -> list[bytes]:
        """The frames that are to be written now, in this order. Each is returned once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def close(self) -> None:
        """Forget all streams; nothing can be sent any more."""
        self.closed = True
        self.streams.clear()

    def send_data(self, stream_id: int, payload: bytes) -> None:
        """Send a message on a stream.

        Raises `ResourceExhausted` if it is too long, `StreamClosed` or `ConnectionClosed`.
        """
        check_size(payload)
        self._check_sendable(stream_id)
        self._outgoing.append(encode(stream_id, _DATA, 0, payload))

    def _receive(self, frame: Frame) -> Event | None:
        raise NotImplementedError

    def _receive_oversized(self, frame: OversizedFrame) -> Event | None:
        raise NotImplementedError

    def _check_sendable(self, stream_id: int) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionClosed

    def _end(self, reason: ProtocolError | None) -> ConnectionEnded:
        self.close()
        return ConnectionEnded(reason)


class ClientConnection(Connection):
    """The side that calls."""

    def __init__(self) -> None:
        super().__init__(Decoder())
        self._next_stream_id = 1

    def send_request(self, request: Request, state: StreamState = StreamState.UNARY) -> int:
        """Begin a call; returns the id of its stream.

        Raises `ResourceExhausted` if the request is too long or the connection has no stream ids
        left, and `ConnectionClosed`.
        """
        self._check_open()
        stream_id = self._next_stream_id
        if stream_id > _LAST_STREAM_ID:
            raise ResourceExhausted("ttrpc: no stream ids left", verbatim=True)
        flags = 0
        if state is not StreamState.UNARY:
            flags = REMOTE_OPEN if state is StreamState.OPEN else REMOTE_CLOSED
        self._outgoing.append(encode(stream_id, _REQUEST, flags, request.encode()))
        self._next_stream_id = stream_id + 2
        self.streams[stream_id] = state
        return stream_id

    def close_send(self, stream_id: int) -> None:
        """Announce that no more messages follow. Raises `StreamClosed` or `ConnectionClosed`."""
        self._check_sendable(stream_id)
        self._outgoing.append(encode(stream_id, _DATA, REMOTE_CLOSED | NO_DATA))
        self.streams[stream_id] = StreamState.HALF_CLOSED

    def forget(self, stream_id: int) -> None:
        """Give a call up. What still arrives for it is ignored.

        The protocol cannot tell the server so; at least it learns that no more data follows.
        """
        if self.streams.get(stream_id) is StreamState.OPEN:
            self.close_send(stream_id)
        self.streams.pop(stream_id, None)

    def _check_sendable(self, stream_id: int) -> None:
        self._check_open()
        if self.streams.get(stream_id) is not StreamState.OPEN:
            raise StreamClosed

    def _receive(self, frame: Frame) -> Event | None:
        stream_id = frame.stream_id
        state = self.streams.get(stream_id)
        if state is None:
            _pass_over(frame)
            return None
        if frame.type == _REQUEST:
            self.forget(stream_id)
            return StreamFailed(stream_id, ProtocolError("request received from a server"))
        if frame.type == _RESPONSE:
            del self.streams[stream_id]
            try:
                return ResponseReceived(stream_id, Response.decode(frame.payload))
            except ProtocolError as exc:
                return StreamFailed(stream_id, exc)
        if state is StreamState.UNARY:
            del self.streams[stream_id]
            return StreamFailed(stream_id, ProtocolError("data received on a unary stream"))
        end = bool(frame.flags & REMOTE_CLOSED)
        payload = None if frame.flags & NO_DATA else frame.payload
        if end:
            del self.streams[stream_id]
        elif payload is None:
            return None
        return DataReceived(stream_id, payload, end)

    def _receive_oversized(self, frame: OversizedFrame) -> Event | None:
        if frame.stream_id not in self.streams:
            _pass_over(frame)
            return None
        self.forget(frame.stream_id)
        return StreamFailed(frame.stream_id, oversized(frame.length))


class ServerConnection(Connection):
    """The side that is called."""

    def __init__(self) -> None:
        super().__init__(Decoder(any_type=True))
        self._last_stream_id = 0

    def send_response(self, stream_id: int, response: Response) -> None:
        """Answer a call, with which its stream is finished.

        Raises `ResourceExhausted` if the answer is too long (the stream goes on),
        `StreamClosed` or `ConnectionClosed`.
        """
        self._check_sendable(stream_id)
        self._outgoing.append(encode(stream_id, _RESPONSE, 0, response.encode()))
        del self.streams[stream_id]

    def send_end(self, stream_id: int) -> None:
        """Finish a stream on which data was sent. Raises as `send_response` does."""
        self._check_sendable(stream_id)
        self._outgoing.append(encode(stream_id, _DATA, REMOTE_CLOSED | NO_DATA))
        del self.streams[stream_id]

    def fail(self, stream_id: int, error: TaskdError) -> None:
        """Answer a call with `error`, unless it has been answered."""
        if self.streams.pop(stream_id, None) is not None:
            self._refuse(stream_id, error.code, error.message)

    def _check_sendable(self, stream_id: int) -> None:
        self._check_open()
        if stream_id not in self.streams:
            raise StreamClosed

    def _refuse(self, stream_id: int, code: Code, message: str) -> None:
        response = Response(code, message[:_MAX_STATUS_MESSAGE])
        self._outgoing.append(encode(stream_id, _RESPONSE, 0, response.encode()))

    def _receive(self, frame: Frame) -> Event | None:
        if not frame.stream_id & 1:
            message = "StreamID must be odd for client initiated streams"
            self._refuse(frame.stream_id, Code.INVALID_ARGUMENT, message)
        elif frame.type == _REQUEST:
            return self._receive_request(frame)
        elif frame.type == _DATA:
            return self._receive_message(frame)
        else:
            _pass_over(frame)
        return None

    def _receive_request(self, frame: Frame) -> Event | None:
        stream_id = frame.stream_id
        if stream_id <= self._last_stream_id:
            # A call that is under way there goes on, and is answered as well.
            message = "StreamID cannot be re-used and must increment"
            self._refuse(stream_id, Code.INVALID_ARGUMENT, message)
            return None
        self._last_stream_id = stream_id
        try:
            request = Request.decode(frame.payload)
        except ProtocolError as exc:
            message = f"unmarshal request error: {exc.message}"
            self._refuse(stream_id, Code.INVALID_ARGUMENT, message)
            return None
        state = StreamState.UNARY
        if frame.flags & REMOTE_CLOSED:
            state = StreamState.HALF_CLOSED
        elif frame.flags & REMOTE_OPEN:
            state = StreamState.OPEN
        self.streams[stream_id] = state
        return RequestReceived(stream_id, request, state)

    def _receive_message(self, frame: Frame) -> Event | None:
        stream_id = frame.stream_id
        state = self.streams.get(stream_id)
        if state is None:
            message = "StreamID is no longer active"
            self._refuse(stream_id, Code.INVALID_ARGUMENT, message)
            return None
        end = bool(frame.flags & REMOTE_CLOSED)
        payload = None if frame.flags & NO_DATA else frame.payload
        if payload is not None and state is not StreamState.OPEN:
            return self._abort(stream_id, "data handling error: ttrpc: stream closed")
        if end and frame.payload:
            return self._abort(stream_id, "data close message cannot include data")
        if state is not StreamState.OPEN or (payload is None and not end):
            return None
        if end:
            self.streams[stream_id] = StreamState.HALF_CLOSED
        return DataReceived(stream_id, payload, end)

    def _receive_oversized(self, frame: OversizedFrame) -> Event | None:
        error = oversized(frame.length)
        self._refuse(frame.stream_id, error.code, error.message)
        if self.streams.pop(frame.stream_id, None) is None:
            return None
        return StreamFailed(frame.stream_id, error)

    def _abort(self, stream_id: int, message: str) -> StreamFailed:
        error = InvalidArgument(message, verbatim=True)
        self.fail(stream_id, error)
        return StreamFailed(stream_id, error)


def _pass_over(frame: Frame | OversizedFrame) -> None:
    """Nobody waits for it, as after a call given up, or it is of no use here."""
    logger.debug("ignored a message of type %d, on stream %d", frame.type, frame.stream_id)
