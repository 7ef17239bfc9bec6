"""The gRPC server: what every call goes through, whatever its service.

A call gets its namespace and deadline (`taskd.api.request`, and anyio's cancel scope), and the
domain's errors become statuses, here and nowhere else.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import anyio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from taskd.api import request
from taskd.api.reflection import Reflection
from taskd.errors import Cancelled, Code, DeadlineExceeded, TaskdError, Unavailable, words
from taskd.grpc.server import Servable, Server
from taskd.observe import Instrument

__all__ = ["ApiServer"]

log = logging.getLogger(__name__)

# Calls that last as long as their client likes; a daemon that stops does not wait for them.
_OPEN_ENDED = {
    "/containerd.services.events.v1.Events/Subscribe",
    "/containerd.services.streaming.v1.Streaming/Stream",
    "/containerd.services.sandbox.v1.Controller/Wait",
    "/containerd.services.tasks.v1.Tasks/Wait",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/taskd.v1.Journal/Read",
    "/taskd.v1.Trace/Follow",
}


_BEGINNINGS = {
    f"/containerd.services.tasks.v1.Tasks/{name}" for name in ("Create", "Start", "Exec")
}
"""What a client has called for and does not have, if it fails."""
_FAILURES = {Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.RESOURCE_EXHAUSTED}
"""Of other calls these are logged as well; the rest is between a client and itself."""


class ApiServer:
    """Serves `services` on a unix socket, with health and reflection beside them."""

    def __init__(
        self, services: Iterable[Servable], instruments: Sequence[Instrument] = ()
    ) -> None:
        """`instruments` see every call; the first one is the innermost."""
        self._calls: dict[anyio.CancelScope, str] = {}
        self._idle = anyio.Event()
        self._draining = False
        services = list(services)
        served = [*services, Reflection(services)]
        self._server = Server([_Guarded(service, self._guard, instruments) for service in served])

    async def start(self, listener: socket.socket) -> None:
        """Serve the connections to `listener`, which is bound and belongs to the caller."""
        await self._server.start(listener)

    async def drain(self, timeout: float) -> None:
        """Refuse new calls and wait at most `timeout` seconds for those in flight.

        What is left then ends with UNAVAILABLE; open-ended calls (``Wait``, ``Subscribe``) do so
        at once.
        """
        self._draining = True
        for scope, method in self._calls.items():
            if method in _OPEN_ENDED:
                scope.cancel()
        with anyio.move_on_after(timeout):
            await self._wait_idle()
        for scope in self._calls:
            scope.cancel()
        await self._wait_idle()

    async def close(self) -> None:
        """Stop serving; `drain` has ended all calls."""
        await self._server.close()

    async def _wait_idle(self) -> None:
        while self._calls:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _guard(self, method: str, handler: _Function) -> _Function:
        async def guarded(stream: request.Stream) -> None:
            if self._draining:
                raise GRPCError(Status.UNAVAILABLE, "taskd is shutting down")
            request.current.set(stream)
            scope = stream.scope
            self._calls[scope] = method
            try:
                await self._call(method, handler, stream)
            finally:
                del self._calls[scope]
                if not self._calls:
                    self._idle.set()

        return guarded

    async def _call(self, method: str, handler: _Function, stream: request.Stream) -> None:
        try:
            with stream.scope as scope:
                await handler(stream)
            if scope.cancelled_caught:
                raise self._ending(stream)
        except TaskdError as exc:
            # Whoever has gone away does not miss anything.
            worth_a_line = not stream.gone and (method in _BEGINNINGS or exc.code in _FAILURES)
            about = f" ({subject})" if (subject := request.subject.get()) else ""
            level = logging.WARNING if worth_a_line else logging.DEBUG
            log.log(level, "%s%s: %s: %s", method, about, exc.code.name, exc)
            raise GRPCError(Status(exc.code), exc.message) from exc
        except (GRPCError, StreamTerminatedError):
            raise
        except Exception as exc:
            log.exception("%s failed", method)
            raise GRPCError(Status.UNKNOWN, words(exc)) from exc

    def _ending(self, stream: request.Stream) -> TaskdError:
        """Why a call was ended."""
        if stream.gone:
            return Cancelled()
        return Unavailable("taskd is shutting down") if self._draining else DeadlineExceeded()


_Function = Callable[["request.Stream"], Awaitable[None]]


class _Guarded:
    """A service each of whose handlers is wrapped."""

    def __init__(
        self,
        service: Servable,
        guard: Callable[[str, _Function], _Function],
        instruments: Sequence[Instrument],
    ) -> None:
        def wrapped(path: str, handler: Handler) -> _Function:
            function = guard(path, handler.func)
            for instrument in instruments:
                function = instrument.incoming(path, handler.cardinality, function)
            return function

        self._mapping = {
            path: Handler(
                wrapped(path, handler),
                handler.cardinality,
                handler.request_type,
                handler.reply_type,
            )
            for path, handler in service.__mapping__().items()
        }

    def __mapping__(self) -> Mapping[str, Handler]:
        return self._mapping
