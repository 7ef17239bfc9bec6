"""The server's side of gRPC, on a socket that is bound already.

grpclib's own server is not used: it knows a request by a task of its own that waits for headers,
data and end in turn, and what a unary call costs is mostly that. Its `Stream` serves the calls that
are streams, and to handlers there is no difference.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol, cast

from grpclib import protocol
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler
from grpclib.events import _DispatchServerEvents
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)

from taskd.grpc.calls import StreamingCall, UnaryCall
from taskd.grpc.connection import Connection, Processor, decoded
from taskd.grpc.connection import Protocol as ConnectionProtocol
from taskd.grpc.headers import Refused, Request

__all__ = ["Servable", "Server"]

_GATHERED_BYTES: Final = 64 << 10

_CONFIG: Final = Configuration().__for_client__()  # no pings: a unix socket tells of its end


class Servable(Protocol):
    """A service: what the bases are that betterproto2 generates."""

    def __mapping__(self) -> Mapping[str, Handler]:
        """Its methods by their paths."""


class Server:
    """Serves `services`."""

    def __init__(self, services: Iterable[Servable]) -> None:
        self.methods: dict[str, Handler] = {}
        for service in services:
            self.methods.update(service.__mapping__())
        self.dispatch = _DispatchServerEvents()
        self.connections: set[_ServerProtocol] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve the connections to `listener`, which is bound and belongs to the caller."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _ServerProtocol(self), sock=listener)

    async def close(self) -> None:
        """Stop serving; calls that are left are cancelled, and their clients told that it ends."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.processor.abandon()
        while self.tasks:
            await asyncio.wait(self.tasks)
        for connection in list(self.connections):
            connection.shut()


class _Nothing(protocol.AbstractHandler):
    """What grpclib's layer would have of grpclib's server."""

    def accept(self, stream: Any, headers: Any, release_stream: Any) -> None:
        raise NotImplementedError

    def cancel(self, stream: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Calls(Processor):
    """The calls of one connection."""

    def __init__(self, server: Server, connection: Connection) -> None:
        super().__init__(_Nothing(), connection)
        self.dispatch = server.dispatch
        self.incomplete: set[UnaryCall] = set()
        """Those that have a deadline, and not yet a request."""
        self._server = server
        self._calls: dict[int, UnaryCall | StreamingCall] = {}
        self._leaving = False
        self._gathers = False
        self._gathered = 0
        self._loop = asyncio.get_running_loop()

    # From the calls

    def begin(self, call: UnaryCall | StreamingCall, work: Coroutine[Any, Any, None]) -> None:
        """Let `work`, which releases the call in the end, have a task."""
        call.task = task = self._loop.create_task(work)
        self._server.tasks.add(task)

    def release(self, call: UnaryCall | StreamingCall) -> None:
        """It has come to its end."""
        del self._calls[call.id]
        if call.task is not None:
            self._server.tasks.discard(call.task)
        stream = self.streams.pop(call.id, None)
        if self.connection.is_closing():
            return
        if stream is not None:
            self.connection.ack(call.id, stream.buffer.unacked_size())
        if self._leaving and not self._calls:
            self.close()  # which sends what is left

    def flush(self) -> None:
        """Send what has been answered: with other answers, if calls were made together."""
        if len(self._calls) == 1:
            self.connection.flush()
        else:
            self._gather()

    def flush_message(self, size: int) -> None:
        """Send a message of a stream; those that follow it at once go together."""
        if not self._gathers:
            self.connection.flush()
            self._gather()
        else:
            self._gathered += size
            if self._gathered > _GATHERED_BYTES:
                self._gathered = 0
                self.connection.flush()

    def _gather(self) -> None:
        if not self._gathers:
            self._gathers = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._gathers = False
        self._gathered = 0
        if not self.connection.is_closing():
            self.connection.flush()

    # From the engine

    def process_request_received(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        request = Request(decoded(event.headers))
        try:
            handler = request.handler(self._server.methods)
        except Refused as exc:
            refused = UnaryCall(self, stream_id, request, _NO_HANDLER)
            self._calls[stream_id] = refused
            refused.refuse(exc.error, exc.http_status)
            return
        if handler.cardinality is Cardinality.UNARY_UNARY:
            self._calls[stream_id] = call = UnaryCall(self, stream_id, request, handler)
            if request.timeout is not None:
                self.incomplete.add(call)
        else:
            stream = self.connection.create_stream(stream_id=stream_id)
            self.streams[stream_id] = stream
            self._calls[stream_id] = streaming = StreamingCall(self, stream, request, handler)
            streaming.begin()

    def process_data_received(self, event: DataReceived) -> None:
        stream_id = event.stream_id
        call = self._calls.get(stream_id)
        if isinstance(call, StreamingCall):
            super().process_data_received(event)
            return
        if call is not None:
            call.receive(event.data)
        self.connection.engine.acknowledge_received_data(event.flow_controlled_length, stream_id)

    def process_stream_ended(self, event: StreamEnded) -> None:
        if (call := self._calls.get(event.stream_id)) is not None:
            call.end()

    def process_stream_reset(self, event: StreamReset) -> None:
        if (call := self._calls.get(event.stream_id)) is not None:
            call.abandon()

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        """The client will make no more calls; those that it has made go on, if the engine can."""
        self._leaving = True
        if self.connection.ended_by_engine or not self._calls:
            self.close()

    def close(self, reason: str = "Connection closed") -> None:
        super().close(reason)
        self.abandon()

    def abandon(self) -> None:
        for call in list(self._calls.values()):
            call.abandon()

    def watch_incomplete(self) -> None:
        """See to the deadlines of calls whose requests are not whole yet."""
        for call in self.incomplete:
            call.watch()
        self.incomplete.clear()


class _ServerProtocol(ConnectionProtocol):
    client = False
    processor: Calls

    def __init__(self, server: Server) -> None:
        super().__init__(_Nothing(), _CONFIG, cast(Any, None))
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def make_processor(self) -> Processor:
        return Calls(self._server, self.connection)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.processor.incomplete:
            self.processor.watch_incomplete()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._server.connections.discard(self)

    # Of a client that does not read what it is sent, nothing is read either.

    def pause_writing(self) -> None:
        super().pause_writing()
        self.connection.wire.pause_reading()

    def resume_writing(self) -> None:
        self.connection.wire.resume_reading()
        super().resume_writing()

    def shut(self) -> None:
        """Tell the client, and close."""
        if not self.connection.is_closing():
            self.connection.engine.close_connection()
        self.processor.close()


_NO_HANDLER: Final = Handler(cast(Any, None), Cardinality.UNARY_UNARY, None, None)
