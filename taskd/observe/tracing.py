"""Traces with OpenTelemetry: each call of a client, and within it the calls of shims.

Needs the extra ``taskd[otel]``. A trace that a client has begun (``traceparent`` in its metadata,
as W3C has it) goes on here, and in shims that trace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from anyio import move_on_after, to_thread
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import taskd
from taskd.config import TracingConfig
from taskd.errors import Code, TaskdError
from taskd.observe import Handler, WatchedConnection
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.ttrpc import Metadata

__all__ = ["Traces", "tracing"]

_FLUSH_SECONDS = 2.0

_W3C = TraceContextTextMapPropagator()


@asynccontextmanager
async def tracing(config: TracingConfig) -> AsyncIterator[Traces]:
    """Send spans to a collector as long as the context is open; what it has not taken when the
    context ends is sent for two seconds more.
    """
    resource = Resource.create(
        {SERVICE_NAME: config.service_name, SERVICE_VERSION: taskd.__version__}
    )
    sampler = ParentBased(TraceIdRatioBased(config.sampling_ratio))
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{config.endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Traces(provider.get_tracer("taskd", taskd.__version__))
    finally:
        with move_on_after(_FLUSH_SECONDS, shield=True):
            await to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


class Traces:
    """Makes a span of each call; an `Instrument`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        _, service, method = path.split("/")
        name = path.removeprefix("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

        async def traced(stream: Any) -> None:
            metadata = stream.metadata or {}
            carrier = {key: metadata[key] for key in _W3C.fields if key in metadata}
            with self._tracer.start_as_current_span(
                name,
                context=_W3C.extract(carrier),
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    await handler(stream)
                except GRPCError as exc:
                    _note(span, exc.status.value, exc.message or "")
                    raise
                else:
                    _note(span, Code.OK, "")

        return traced

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        return WatchedConnection(connection, self._asked)

    @contextmanager
    def _asked(
        self, service: str, method: str, metadata: Metadata | None
    ) -> Iterator[Metadata | None]:
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "ttrpc", "rpc.service": service, "rpc.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier)
            try:
                yield {**(metadata or {}), **{key: [value] for key, value in carrier.items()}}
            except TaskdError as exc:
                _note(span, exc.code.value, str(exc))
                raise
            _note(span, Code.OK, "")


def _note(span: Span, code: int, message: str) -> None:
    span.set_attribute("rpc.grpc.status_code", code)
    if code != Code.OK:
        span.set_status(Status(StatusCode.ERROR, message))
