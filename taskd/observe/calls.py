"""``--log-level trace``: a line for each call, with what became of it and the time it took."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError

from taskd import ttrpc
from taskd.errors import TaskdError
from taskd.grpc import NAMESPACE_HEADER
from taskd.logs import TRACE
from taskd.observe import Handler, WatchedConnection
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection

__all__ = ["LoggedCalls"]

log = logging.getLogger("taskd.calls")


class LoggedCalls:
    """Logs calls; an `Instrument`."""

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        async def logged(stream: Any) -> None:
            namespace = (stream.metadata or {}).get(NAMESPACE_HEADER, "")
            with _logged(f"gRPC {path} in {namespace!r}"):
                await handler(stream)

        return logged

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        shim = f"{bundle.namespace}/{bundle.id}"

        @contextmanager
        def logged(
            service: str, method: str, metadata: ttrpc.Metadata | None
        ) -> Iterator[ttrpc.Metadata | None]:
            with _logged(f"ttrpc /{service}/{method} to shim {shim}"):
                yield metadata

        return WatchedConnection(connection, logged)

    def served(self, service: ttrpc.Service) -> ttrpc.Service:
        """The service, which shims call, with each call logged."""

        def watched(name: str, handler: ttrpc.Handler) -> ttrpc.Handler:
            async def logged(context: ttrpc.CallContext, payload: bytes) -> bytes:
                with _logged(f"ttrpc /{service.name}/{name} of a shim"):
                    assert not isinstance(handler, ttrpc.Streaming)
                    return await handler(context, payload)

            return handler if isinstance(handler, ttrpc.Streaming) else logged

        methods = {name: watched(name, each) for name, each in service.methods.items()}
        return replace(service, methods=methods)


@contextmanager
def _logged(call: str) -> Iterator[None]:
    begin = time.perf_counter()
    outcome = "OK"
    try:
        yield
    except TaskdError as exc:
        outcome = f"{exc.code.name}: {exc}"
        raise
    except GRPCError as exc:
        outcome = f"{exc.status.name}: {exc.message}"
        raise
    except asyncio.CancelledError:
        outcome = "CANCELLED"
        raise
    except BaseException as exc:
        outcome = repr(exc)
        raise
    finally:
        log.log(TRACE, "%s: %.1f ms, %s", call, (time.perf_counter() - begin) * 1e3, outcome)
