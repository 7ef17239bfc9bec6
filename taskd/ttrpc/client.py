"""A client: any number of calls at once on one connection."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from taskd.errors import DeadlineExceeded, ResourceExhausted, TaskdError, from_status
from taskd.ttrpc import address as addresses
from taskd.ttrpc.connection import ClientConnection, ConnectionClosed, StreamClosed
from taskd.ttrpc.events import (
    DataReceived,
    Event,
    ResponseReceived,
    StreamFailed,
    StreamState,
)
from taskd.ttrpc.inbox import Inbox
from taskd.ttrpc.messages import KeyValue, Request, Response
from taskd.ttrpc.transport import Endpoint

__all__ = ["Client", "ClientStream", "Metadata"]

Metadata = Mapping[str, Sequence[str]]
"""What travels with a call besides its message; keys are sent in lower case (``metadata.go``)."""

_MAX_TIMEOUT_NANO: Final = (1 << 63) - 1


class Client(Endpoint):
    """The calling end of a connection. Made by `connect` or `from_socket`, ended by `aclose`."""

    _connection: ClientConnection

    def __init__(self) -> None:
        super().__init__(ClientConnection())
        # Unary calls under way. A failure is a result here, not an exception: a caller who is
        # cancelled at that very moment would otherwise leave one that nobody retrieves.
        self._calls: dict[int, asyncio.Future[Response | TaskdError]] = {}
        self._streams: dict[int, ClientStream] = {}

    @classmethod
    async def connect(cls, address: str, *, timeout: float | None = None) -> Self:
        """Connect within `timeout` seconds to `address`: see `address.socket_name`.

        Raises `Unavailable`, which names the address.
        """
        return await cls.from_socket(await addresses.dial(address, timeout=timeout))

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """Take over a connected socket."""
        _, client = await asyncio.get_running_loop().create_unix_connection(cls, sock=sock)
        return client

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> bytes:
        """Answer of a unary call; `timeout` is in seconds, and travels with the call.

        Raises the error of the server's status, `DeadlineExceeded`, `ResourceExhausted` for a
        message over the limit in either direction, `ProtocolError` for an answer that is none,
        or `ConnectionClosed`. A call that has no time left is not sent.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        if not self._writable.is_set():
            await self._drain(deadline)
        stream_id = self._begin(service, method, payload, deadline, metadata, StreamState.UNARY)
        answer: asyncio.Future[Response | TaskdError] = self._loop.create_future()
        self._calls[stream_id] = answer
        timer = None if deadline is None else self._loop.call_at(deadline, _expire, answer)
        try:
            outcome = await answer
        finally:
            if timer is not None:
                timer.cancel()
            if self._calls.pop(stream_id, None) is not None:
                self._connection.forget(stream_id)
        if isinstance(outcome, TaskdError):
            raise outcome
        if outcome.code:
            raise from_status(outcome.code, outcome.message)
        return outcome.payload

    def stream(
        self,
        service: str,
        method: str,
        payload: bytes | None,
        *,
        client_streaming: bool | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> ClientStream:
        """A streaming call, which begins when it is entered with ``async with``.

        With a `payload`, that is the client's only message; with None, messages are sent on the
        stream. `client_streaming` overrides this, for a first message that others follow.
        `timeout` is in seconds, for the whole of the call.
        """
        if client_streaming is None:
            client_streaming = payload is None
        state = StreamState.OPEN if client_streaming else StreamState.HALF_CLOSED
        return ClientStream(self, service, method, payload or b"", state, timeout, metadata)

    async def aclose(self) -> None:
        """Hang up. Calls under way fail with `ConnectionClosed`. May be called again."""
        self._abort()
        await self.wait_closed()

    def _begin(
        self,
        service: str,
        method: str,
        payload: bytes,
        deadline: float | None,
        metadata: Metadata | None,
        state: StreamState,
    ) -> int:
        request = Request(service, method, payload)
        if deadline is not None:
            request.timeout_nano = self._time_left(deadline)
        if metadata:
            request.metadata = tuple(
                KeyValue(key.lower(), value) for key, values in metadata.items() for value in values
            )
        stream_id = self._connection.send_request(request, state)
        self._flush()
        return stream_id

    def _time_left(self, deadline: float) -> int:
        """In ns, of which 0 would mean to the server that there is no limit."""
        left = deadline - self._loop.time()
        if left <= 0:
            raise DeadlineExceeded
        if math.isinf(left):
            return 0
        if left * 1e9 >= _MAX_TIMEOUT_NANO:
            return _MAX_TIMEOUT_NANO
        return max(1, int(left * 1e9))

    def _handle(self, event: Event) -> None:
        if type(event) is ResponseReceived:
            self._resolve(event.stream_id, event.response)
        elif type(event) is StreamFailed:
            self._resolve(event.stream_id, event.error)
        elif type(event) is DataReceived:
            stream = self._streams[event.stream_id]
            self._deliver(stream._inbox, event.payload, event.end)

    def _resolve(self, stream_id: int, outcome: Response | TaskdError) -> None:
        answer = self._calls.pop(stream_id, None)
        if answer is None:
            self._streams[stream_id]._resolve(outcome)
        elif not answer.done():
            answer.set_result(outcome)

    def _fail_all(self) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_result(ConnectionClosed())
        self._calls.clear()
        for stream in self._streams.values():
            stream._inbox.end(ConnectionClosed())
        self._streams.clear()

    def _fail_full(self, inbox: Inbox, error: ResourceExhausted) -> None:
        for stream_id, stream in self._streams.items():
            if stream._inbox is inbox:
                self._connection.forget(stream_id)
                inbox.end(error)


class ClientStream:
    """A streaming call: an async context manager, and an async iterator of its messages."""

    def __init__(
        self,
        client: Client,
        service: str,
        method: str,
        payload: bytes,
        state: StreamState,
        timeout: float | None,
        metadata: Metadata | None,
    ) -> None:
        self._client = client
        self._service = service
        self._method = method
        self._payload = payload
        self._state = state
        self._timeout = timeout
        self._metadata = metadata
        self._inbox = Inbox(client._room_made)
        self._id = 0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Begin the call. Raises as `Client.call` does, but for the server's errors."""
        client = self._client
        if self._timeout is not None:
            self._deadline = client._loop.time() + self._timeout
        await client._drain(self._deadline)
        self._id = client._begin(
            self._service, self._method, self._payload, self._deadline, self._metadata, self._state
        )
        client._streams[self._id] = self
        if self._deadline is not None:
            self._timer = client._loop.call_at(self._deadline, self._expire)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give up what is left of the call."""
        if self._timer is not None:
            self._timer.cancel()
        self._client._connection.forget(self._id)
        self._client._flush()
        self._client._streams.pop(self._id, None)
        self._inbox.discard()

    async def send(self, message: bytes) -> None:
        """Send a message, when the server has read enough of what was sent before.

        Raises `StreamClosed` after `close_send` or the server's answer (which `recv` tells),
        `ResourceExhausted`, `DeadlineExceeded`, or `ConnectionClosed`.
        """
        await self._client._drain(self._deadline)
        self._client._connection.send_data(self._id, message)
        self._client._flush()

    async def close_send(self) -> None:
        """Say that no more messages follow; again, or after the server's answer, it is moot.

        Raises `ConnectionClosed`.
        """
        try:
            self._client._connection.close_send(self._id)
        except StreamClosed:
            return
        self._client._flush()

    async def recv(self) -> bytes | None:
        """The next message; None at the end. Raises as `Client.call` does."""
        return await self._inbox.get()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self._inbox.get()
        if message is None:
            raise StopAsyncIteration
        return message

    def _resolve(self, outcome: Response | TaskdError) -> None:
        if isinstance(outcome, TaskdError):
            self._inbox.end(outcome)
        elif outcome.code:
            self._inbox.end(from_status(outcome.code, outcome.message))
        else:
            self._client._deliver(self._inbox, outcome.payload, end=True)

    def _expire(self) -> None:
        self._client._connection.forget(self._id)
        self._client._flush()
        self._inbox.end(DeadlineExceeded())


def _expire(answer: asyncio.Future[Response | TaskdError]) -> None:
    if not answer.done():
        answer.set_result(DeadlineExceeded())
