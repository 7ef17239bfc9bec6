"""A call in the server: one whose request and answer are one message each, and all others.

What handlers get is grpclib's `Stream`, or, of a unary call, what looks like one to them. Both have
a `scope`, in which the handler does its work: it is cancelled at the call's deadline, and when the
client has gone. Nothing else cancels a call, so that what the domain has shielded, a clean-up or a
commit, comes to its end.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import grpclib.server
from grpclib import protocol
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import Deadline
from h2.exceptions import ProtocolError as H2ProtocolError

from taskd.grpc.codecs import Messages
from taskd.grpc.connection import Connection
from taskd.grpc.framing import PREFIX_SIZE, expand, frame, parse_prefix
from taskd.grpc.headers import Request, beginning, trailers

if TYPE_CHECKING:
    from taskd.grpc.server import Calls

__all__ = ["StreamingCall", "UnaryCall"]

log = logging.getLogger(__name__)

_CODEC: Final = Messages()
_TOO_LATE: Final = "context deadline exceeded"
_NO_ANSWER: Final = GRPCError(Status.UNKNOWN, "Internal Server Error")


def _scope(timeout: float | None) -> anyio.CancelScope:
    if timeout is None:
        return anyio.CancelScope()
    return anyio.CancelScope(deadline=anyio.current_time() + timeout)


def _is_over(scope: anyio.CancelScope) -> bool:
    return scope.deadline <= anyio.current_time()


def _failure(path: str, exc: Exception) -> GRPCError:
    """What a client hears of an error that its handler should have caught."""
    if isinstance(exc, GRPCError):
        return exc
    log.error("%s failed", path, exc_info=exc)
    return GRPCError(Status.UNKNOWN, "Internal Server Error")


class UnaryCall:
    """A call of a unary method; to its handler a `grpclib.server.Stream`.

    It is served once its request has arrived whole, and answered with one write.
    """

    __slots__ = (
        "_answer",
        "_begun",
        "_calls",
        "_compressed",
        "_connection",
        "_handler",
        "_http_status",
        "_needed",
        "_parts",
        "_request",
        "_size",
        "_taken",
        "_timer",
        "_trailers",
        "gone",
        "half_closed",
        "id",
        "scope",
        "task",
    )

    def __init__(self, calls: Calls, stream_id: int, request: Request, handler: Handler) -> None:
        self.id = stream_id
        self.gone = False
        """The client does not wait for an answer any more."""
        self.half_closed = False
        """The client has sent all that it will."""
        self.scope = _scope(request.timeout)
        """What the handler does is done in it."""
        self.task: asyncio.Task[None] | None = None
        self._calls = calls
        self._connection: Connection = calls.connection
        self._request = request
        self._handler = handler
        self._parts: list[bytes] = []
        self._size = 0
        self._needed = 0
        self._begun = False
        self._taken = False
        self._timer: asyncio.TimerHandle | None = None
        self._compressed = False
        self._http_status = b"200"
        self._answer: bytes | None = None
        self._trailers: tuple[Status, str | None] | None = None

    # From the connection

    def receive(self, data: bytes) -> None:
        """Take what the client sends; what comes after its message is of no interest."""
        if self._begun:
            return
        self._parts.append(data)
        self._size += len(data)
        if not self._needed:
            if self._size < PREFIX_SIZE:
                return
            if len(self._parts) > 1:
                self._parts = [b"".join(self._parts)]
            try:
                self._compressed, size = parse_prefix(self._parts[0][:PREFIX_SIZE])
            except GRPCError as exc:
                self.refuse(exc)
                return
            self._needed = PREFIX_SIZE + size
        if self._size >= self._needed:
            self._begin(self._serve())

    def end(self) -> None:
        """The client has sent all that it will."""
        self.half_closed = True
        if not self._begun:
            words = "unexpected EOF" if self._size else "EOF"
            self.refuse(GRPCError(Status.INTERNAL, words))

    def watch(self) -> None:
        """End it at its deadline, if its request is not whole by then."""
        if not self._begun:
            left = self.scope.deadline - anyio.current_time()
            self._timer = asyncio.get_running_loop().call_later(
                left, self.refuse, GRPCError(Status.DEADLINE_EXCEEDED, _TOO_LATE)
            )

    def refuse(self, error: GRPCError, http_status: bytes = b"200") -> None:
        """Answer with an error, without a handler."""
        self._http_status = http_status
        self._parts.clear()
        self._begin(self._answer_with(error))

    def abandon(self) -> None:
        """The client has gone, or does not want to know any more."""
        self.gone = True
        self.scope.cancel()
        if not self._begun:
            self._begun = True
            self._stop_watch()
            self._calls.release(self)

    def _begin(self, work: Any) -> None:
        self._begun = True
        self._stop_watch()
        self._calls.begin(self, work)

    def _stop_watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # For the handler

    @property
    def metadata(self) -> Any:
        return self._request.metadata

    @property
    def user_agent(self) -> str | None:
        return self._request.fields.get("user-agent")

    @property
    def peer(self) -> protocol.Peer:
        return self._connection.get_peer()

    async def recv_message(self) -> Any:
        """The request; None if it has been taken. Raises GRPCError."""
        if self._taken:
            return None
        self._taken = True
        data = self._message()
        if self._compressed:
            data = expand(data, self._request.encoding)
        return _CODEC.decode(data, self._handler.request_type)

    def _message(self) -> bytes:
        """The request's bytes, which are copied once."""
        parts, self._parts = self._parts, []
        if len(parts) == 1:
            return parts[0][PREFIX_SIZE : self._needed]
        first, *others = parts
        message = b"".join((memoryview(first)[PREFIX_SIZE:], *others))
        return message[: self._needed - PREFIX_SIZE]

    async def send_message(self, message: Any) -> None:
        """Give the answer, which is sent when the handler has returned."""
        self._answer = frame(_CODEC.encode(message, self._handler.reply_type))

    async def send_initial_metadata(self, **_: Any) -> None:
        """Nothing: it goes with the answer."""

    async def send_trailing_metadata(
        self, *, status: Status = Status.OK, status_message: str | None = None, **_: Any
    ) -> None:
        """Say how the call ends, if there is no answer."""
        self._trailers = status, status_message

    # What becomes of it

    async def _serve(self) -> None:
        try:
            error: GRPCError | None = None
            try:
                if self._request.timeout is not None and _is_over(self.scope):
                    raise GRPCError(Status.DEADLINE_EXCEEDED, _TOO_LATE)
                await self._handler.func(cast(Any, self))
            except Exception as exc:
                error = _failure(self._request.path, exc)
            await self._finish(error)
        finally:
            self._calls.release(self)

    async def _answer_with(self, error: GRPCError) -> None:
        try:
            await self._finish(error)
        finally:
            self._calls.release(self)

    async def _finish(self, error: GRPCError | None) -> None:
        answer, ending = self._answer, self._trailers
        if error is not None:
            answer, ending = None, (error.status, error.message)
        elif answer is None and ending is None:
            log.error("%s: its handler gave no answer", self._request.path)
            ending = _NO_ANSWER.status, _NO_ANSWER.message
        connection = self._connection
        if not connection.write_ready.is_set():
            await connection.write_ready.wait()
        if self.gone or connection.is_closing():
            return
        last = trailers(*(ending or (Status.OK, None)), connection.header_limit)
        engine, stream_id = connection.engine, self.id
        try:
            if answer is None:
                engine.send_headers(
                    stream_id, (*beginning(self._http_status), *last), end_stream=True
                )
            elif len(answer) > connection.room(stream_id):
                await self._send_by_and_by(answer, last)
            else:
                engine.send_headers(stream_id, beginning())
                engine.send_data(stream_id, answer)
                engine.send_headers(stream_id, last, end_stream=True)
            if error and not self.half_closed and stream_id in engine.streams:
                engine.reset_stream(stream_id, 0)  # what else it sends is not waited for
        except H2ProtocolError:
            pass  # it has gone just now
        self._calls.flush()

    async def _send_by_and_by(self, answer: bytes, last: Any) -> None:
        """Send as much at once as the client has room for."""
        stream = self._connection.create_stream(stream_id=self.id)
        self._calls.streams[self.id] = stream
        with anyio.CancelScope() as self.scope, suppress(StreamTerminatedError):
            await stream.send_headers(cast(Any, beginning()))
            await stream.send_data(answer)
            await stream.send_headers(cast(Any, last), end_stream=True)


class StreamingCall(grpclib.server.Stream[Any, Any]):
    """A call with streams of messages: grpclib's, with gzip and limits."""

    def __init__(
        self, calls: Calls, stream: protocol.Stream, request: Request, handler: Handler
    ) -> None:
        timeout = request.timeout
        super().__init__(
            stream,
            request.path,
            handler.cardinality,
            cast(Any, handler.request_type),
            cast(Any, handler.reply_type),
            codec=_CODEC,
            status_details_codec=None,
            dispatch=calls.dispatch,
            deadline=None if timeout is None else Deadline.from_timeout(timeout),
            user_agent=request.fields.get("user-agent"),
        )
        self.metadata = request.metadata
        self.scope = _scope(timeout)
        """What the handler does is done in it."""
        self.gone = False
        """The client does not wait for an answer any more."""
        self.id = cast(int, stream.id)
        self._half_closed = False
        self.task: asyncio.Task[None] | None = None
        self._calls = calls
        self._request = request
        self._handler = handler

    def end(self) -> None:
        """The client has sent all that it will."""
        self._half_closed = True
        self._stream.__ended__()

    def begin(self) -> None:
        self._calls.begin(self, self._serve())

    def abandon(self) -> None:
        """The client has gone, or does not want to know any more."""
        self.gone = True
        self.scope.cancel()

    async def recv_message(self) -> Any:
        """The next message; None if there is no more. Raises GRPCError."""
        prefix = await self._receive(PREFIX_SIZE)
        if not prefix:
            if not self._handler.cardinality.client_streaming:
                raise GRPCError(Status.INTERNAL, "EOF")
            return None
        compressed, size = parse_prefix(prefix)
        data = await self._receive(size)
        if len(data) < size:
            raise GRPCError(Status.INTERNAL, "unexpected EOF")
        if compressed:
            data = expand(data, self._request.encoding)
        return _CODEC.decode(data, self._recv_type)

    async def _receive(self, size: int) -> bytes:
        """So many bytes, or none if none came; raises GRPCError if some are missing."""
        try:
            return await self._stream.recv_data(size)
        except AssertionError:  # grpclib's way to say so
            raise GRPCError(Status.INTERNAL, "unexpected EOF") from None

    async def send_message(self, message: Any) -> None:
        """Send a message. Raises StreamTerminatedError if the client has gone."""
        await self._send_beginning()
        data = frame(_CODEC.encode(message, self._send_type))
        connection = self._calls.connection
        if connection.write_ready.is_set() and len(data) <= connection.room(self.id):
            try:
                connection.engine.send_data(self.id, data)
            except H2ProtocolError as exc:
                raise StreamTerminatedError("Stream closed") from exc
            self._calls.flush_message(len(data))
        else:
            await self._stream.send_data(data)
        self._send_message_done = True

    async def send_initial_metadata(self, **_: Any) -> None:
        """Tell the client that it is served. Raises StreamTerminatedError if it has gone."""
        await self._send_beginning()
        self._calls.connection.flush()

    async def _send_beginning(self) -> None:
        """Send the headers, if they are not: with what follows them."""
        if not self._send_initial_metadata_done:
            await self._send_fields(beginning())
            self._send_initial_metadata_done = True

    async def _send_fields(self, fields: Any, *, end: bool = False) -> None:
        connection = self._calls.connection
        await connection.write_ready.wait()
        if self.gone or connection.is_closing() or self.id not in connection.engine.streams:
            raise StreamTerminatedError("Stream closed")
        try:
            connection.engine.send_headers(self.id, fields, end_stream=end)
        except H2ProtocolError as exc:
            raise StreamTerminatedError("Stream closed") from exc

    async def _serve(self) -> None:
        try:
            error: GRPCError | None = None
            try:
                if _is_over(self.scope):
                    raise GRPCError(Status.DEADLINE_EXCEEDED, _TOO_LATE)
                await self._handler.func(self)
            except StreamTerminatedError:
                return
            except Exception as exc:
                error = _failure(self._request.path, exc)
            with suppress(StreamTerminatedError):
                await self._finish(error)
        finally:
            self._calls.release(self)

    async def _finish(self, error: GRPCError | None) -> None:
        if self.gone or self._send_trailing_metadata_done:
            return
        if error is None and not (self._cardinality.server_streaming or self._send_message_done):
            error = _NO_ANSWER
        status, message = (error.status, error.message) if error else (Status.OK, None)
        last = trailers(status, message, self._calls.connection.header_limit)
        if not self._send_initial_metadata_done:
            last = (*beginning(), *last)
        await self._send_fields(last, end=True)
        self._send_trailing_metadata_done = True
        # Not after an answer: there are clients, grpclib's among them, that then lose it.
        if error and not self._half_closed:
            self._stream.reset_nowait()  # what else the client sends is not waited for
        self._calls.flush()
