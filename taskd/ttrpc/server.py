"""A server: services on a listening socket, or on connections that are handed to it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

from taskd.errors import (
    Cancelled,
    DeadlineExceeded,
    ResourceExhausted,
    TaskdError,
    Unavailable,
    Unimplemented,
    Unknown,
    words,
)
from taskd.ttrpc.address import listen, socket_name
from taskd.ttrpc.connection import ServerConnection
from taskd.ttrpc.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamFailed,
    StreamState,
)
from taskd.ttrpc.inbox import Inbox
from taskd.ttrpc.messages import KeyValue, Response
from taskd.ttrpc.transport import Endpoint

__all__ = ["CallContext", "Handler", "Server", "ServerStream", "Service", "Streaming"]

logger = logging.getLogger("taskd.ttrpc")

_BACKLOG: Final = 1024

# From Python 3.13 on a server would remove the file of a socket that is not its own.
_KEEP: Final[Mapping[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}

_FLUSH_SECONDS: Final = 1.0
"""How long a client may take to read its last answers when the server closes."""

_NO_METADATA: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


class CallContext(NamedTuple):
    """What a handler may know of its call besides the message."""

    service: str
    method: str
    metadata: Mapping[str, tuple[str, ...]]
    """By key in lower case."""
    deadline: float | None
    """In the event loop's time; the handler is cancelled then. None: there is none."""


UnaryHandler: TypeAlias = Callable[[CallContext, bytes], Awaitable[bytes]]
StreamHandler: TypeAlias = "Callable[[CallContext, ServerStream], Awaitable[bytes | None]]"


class Streaming(NamedTuple):
    """A method that streams, in either direction or both.

    `func` returns None if it has sent what there was to send, as it does when the server streams;
    bytes are the one answer to a client's stream.
    """

    func: StreamHandler


Handler: TypeAlias = UnaryHandler | Streaming


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its full name, as ``containerd.task.v2.Task``, and its methods by name.

    A handler's `TaskdError` is answered as it is; any other exception as UNKNOWN, and logged. It
    is cancelled when the call's deadline has passed or its client has gone.
    """

    name: str
    methods: Mapping[str, Handler]


class ServerStream:
    """The messages of a streaming call: an async iterator of the client's, and `send`."""

    def __init__(self, session: _Session, stream_id: int) -> None:
        self._session = session
        self._id = stream_id
        self._inbox = Inbox(session._room_made)

    async def send(self, message: bytes) -> None:
        """Send a message, when the client has read enough of what was sent before.

        Raises `ResourceExhausted`, `StreamClosed` or `ConnectionClosed`.
        """
        await self._session._drain()
        self._session._connection.send_data(self._id, message)
        self._session._flush()

    async def recv(self) -> bytes | None:
        """The client's next message; None after its last."""
        return await self._inbox.get()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self._inbox.get()
        if message is None:
            raise StopAsyncIteration
        return message


class Server:
    """Serves `services`; raises ValueError if two have one name."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._services: dict[str, Mapping[str, Handler]] = {}
        for service in services:
            if service.name in self._services:
                raise ValueError(f"duplicate service {service.name}")
            self._services[service.name] = service.methods
        self._listeners: list[asyncio.Server] = []
        # Sockets in the file system that are ours to remove.
        self._paths: list[Path] = []
        self._sessions: set[_Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self, where: socket.socket | str | os.PathLike[str]) -> None:
        """Accept connections at an address, or on a socket that is bound already.

        The socket file of an address is removed by `aclose`. Raises OSError if it cannot be
        bound; one that exists is in the way, whether anybody listens there or not.
        """
        if not isinstance(where, socket.socket):
            name = socket_name(os.fspath(where))
            where = listen(where)
            if not name.startswith("\0"):
                self._paths.append(Path(name))
        loop = asyncio.get_running_loop()
        self._listeners.append(
            await loop.create_unix_server(
                lambda: _Session(self), sock=where, backlog=_BACKLOG, **_KEEP
            )
        )

    async def serve_connection(self, sock: socket.socket) -> None:
        """Take over a connected socket; returns as soon as it is served."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: _Session(self), sock)

    @property
    def has_clients(self) -> bool:
        return bool(self._sessions)

    async def aclose(self, grace: float = 0.0) -> None:
        """Stop: accept nothing more, wait up to `grace` seconds for calls under way, cancel them.

        New calls on connections that there are get `Unavailable`. Returns when every handler has
        ended and every connection is closed; so no handler may call it. May be called again.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        self._remove_paths()
        try:
            if self._tasks and grace > 0:
                await asyncio.wait(self._tasks, timeout=grace)
        finally:
            for task in self._tasks:
                _cancel(task)
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.gather(*(session.finish() for session in self._sessions))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _remove_paths(self) -> None:
        for path in self._paths:
            with suppress(OSError):
                path.unlink()
        self._paths.clear()

    def _find(self, service: str, method: str) -> Handler:
        methods = self._services.get(service)
        if methods is None:
            raise Unimplemented(f"service {service}", verbatim=True)
        handler = methods.get(method)
        if handler is None:
            raise Unimplemented(f"method {method}", verbatim=True)
        return handler


class _Session(Endpoint):
    """A connection from one client, and the calls on it."""

    # A client that does not read its answers gets no more calls in.
    _reads_while_writing_is_paused = False
    _connection: ServerConnection

    def __init__(self, server: Server) -> None:
        super().__init__(ServerConnection())
        self._server = server
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, ServerStream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server._sessions.add(self)
        if self._server._closing:
            self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._sessions.discard(self)

    async def finish(self) -> None:
        """Hang up when the client has read what was written."""
        if self._transport is None:
            return
        self._connection.close()
        self._transport.close()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self.wait_closed()
        except TimeoutError:
            self._abort()
            await self.wait_closed()

    def _handle(self, event: Event) -> None:
        if type(event) is RequestReceived:
            try:
                self._begin(event)
            except TaskdError as exc:
                self._connection.fail(event.stream_id, exc)
        elif type(event) is DataReceived:
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._deliver(stream._inbox, event.payload, event.end)
        elif type(event) is StreamFailed:
            task = self._calls.get(event.stream_id)
            if task is not None:  # else it was cancelled because the server closes
                _cancel(task)

    def _begin(self, event: RequestReceived) -> None:
        request, stream_id = event.request, event.stream_id
        if self._server._closing:
            raise Unavailable("ttrpc: server closed", verbatim=True)
        handler = self._server._find(request.service, request.method)
        deadline = None
        if request.timeout_nano > 0:
            deadline = self._loop.time() + request.timeout_nano / 1e9
        metadata = _by_key(request.metadata) if request.metadata else _NO_METADATA
        context = CallContext(request.service, request.method, metadata, deadline)
        if isinstance(handler, Streaming):
            self._streams[stream_id] = self._open(event)
        task = self._loop.create_task(self._serve(stream_id, handler, context, request.payload))
        self._calls[stream_id] = task
        self._server._tasks.add(task)
        timer = None
        if deadline is not None:
            timer = self._loop.call_at(deadline, self._expire, stream_id)
        task.add_done_callback(partial(self._finished, stream_id, timer))

    def _open(self, event: RequestReceived) -> ServerStream:
        stream = ServerStream(self, event.stream_id)
        # A client that streams may send its first message with the request, and an empty one is
        # none then (Go: ``serviceSet.handle``).
        if event.state is not StreamState.OPEN:
            self._deliver(stream._inbox, event.request.payload, end=True)
        elif event.request.payload:
            self._deliver(stream._inbox, event.request.payload, end=False)
        return stream

    async def _serve(
        self, stream_id: int, handler: Handler, context: CallContext, payload: bytes
    ) -> None:
        try:
            if isinstance(handler, Streaming):
                result = await handler.func(context, self._streams[stream_id])
            else:
                result = await handler(context, payload)
            self._answer(stream_id, handler, result)
        except TaskdError as exc:
            self._connection.fail(stream_id, exc)
        except Exception as exc:
            logger.exception("/%s/%s failed", context.service, context.method)
            self._connection.fail(stream_id, Unknown(words(exc)))
        self._flush()

    def _answer(self, stream_id: int, handler: Handler, result: bytes | None) -> None:
        if stream_id not in self._connection.streams:
            return  # The stream failed meanwhile, or the client has gone.
        if result is not None:
            self._connection.send_response(stream_id, Response(payload=result))
        elif isinstance(handler, Streaming):
            self._connection.send_end(stream_id)
        else:
            raise TypeError("the handler returned nothing")

    def _expire(self, stream_id: int) -> None:
        self._connection.fail(stream_id, DeadlineExceeded())
        self._flush()
        _cancel(self._calls[stream_id])

    def _finished(
        self, stream_id: int, timer: asyncio.TimerHandle | None, task: asyncio.Task[None]
    ) -> None:
        if timer is not None:
            timer.cancel()
        del self._calls[stream_id]
        self._server._tasks.discard(task)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream._inbox.discard()
        if task.cancelled() and not self._server._closing:
            # Not for us, then: the handler let a cancellation of its own out.
            self._connection.fail(stream_id, Cancelled())
            self._flush()

    def _fail_all(self) -> None:
        for task in self._calls.values():
            _cancel(task)

    def _fail_full(self, inbox: Inbox, error: ResourceExhausted) -> None:
        for stream_id, stream in self._streams.items():
            if stream._inbox is inbox:
                self._connection.fail(stream_id, error)
                _cancel(self._calls[stream_id])


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel `task`, but not twice: it may be cleaning up."""
    if not task.cancelling():
        task.cancel()


def _by_key(metadata: Iterable[KeyValue]) -> Mapping[str, tuple[str, ...]]:
    values: dict[str, list[str]] = {}
    for key, value in metadata:
        values.setdefault(key.lower(), []).append(value)
    return {key: tuple(found) for key, found in values.items()}
