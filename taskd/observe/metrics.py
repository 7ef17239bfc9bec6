"""The Prometheus endpoint: what the daemon does, and what containers use.

Needs prometheus-client (``taskd[metrics]``), whose server runs in a thread of its own; what it has
to ask of the event loop it asks there, so that a scrape never stands in anybody's way. Names of
calls are go-grpc-prometheus's, as containerd has them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from anyio import to_thread
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import taskd
from taskd.errors import FailedPrecondition, TaskdError
from taskd.events import Bus, Entry, Journal
from taskd.observe import Handler, WatchedConnection
from taskd.observe.containers import families
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary
from taskd.runtime.types import CreateOptions
from taskd.tasks.service import Usage
from taskd.ttrpc import Metadata

__all__ = ["Meters", "serving"]

_SCRAPE_SECONDS = 10.0

_TYPES = {
    Cardinality.UNARY_UNARY: "unary",
    Cardinality.UNARY_STREAM: "server_stream",
    Cardinality.STREAM_UNARY: "client_stream",
    Cardinality.STREAM_STREAM: "bidi_stream",
}


class Meters:
    """Counts what happens; an `Instrument`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        method = ("grpc_type", "grpc_service", "grpc_method")

        def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, labels: Sequence[str]) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry)

        self._started = counter("grpc_server_started", "Calls that clients began", method)
        self._handled = counter(
            "grpc_server_handled", "Calls that have ended", (*method, "grpc_code")
        )
        self._seconds = histogram("grpc_server_handling_seconds", "How long calls took", method)
        self._shim_starts = counter(
            "taskd_shim_starts", "Shims that were started, or could not be", ("outcome",)
        )
        self._shim_start_seconds = histogram(
            "taskd_shim_start_seconds", "How long the start of a shim took", ()
        )
        self._shim_calls = histogram(
            "taskd_shim_rpc_seconds", "How long shims took to answer", ("method", "code")
        )
        self._events = counter("taskd_events", "Events in the journal", ("topic",))
        build = counter("taskd_build_info", "This program", ("version",))
        build.labels(taskd.__version__).inc()

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        _, service, method = path.split("/")
        labels = (_TYPES[cardinality], service, method)
        started, seconds = self._started.labels(*labels), self._seconds.labels(*labels)

        async def metered(stream: Any) -> None:
            started.inc()
            begin = time.perf_counter()
            code = Status.OK
            try:
                await handler(stream)
            except GRPCError as exc:
                code = exc.status
                raise
            except asyncio.CancelledError:
                code = Status.CANCELLED
                raise
            except BaseException:
                code = Status.UNKNOWN
                raise
            finally:
                seconds.observe(time.perf_counter() - begin)
                self._handled.labels(*labels, _name(code.name)).inc()

        return metered

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        return WatchedConnection(connection, self._asked)

    @contextmanager
    def _asked(self, _: str, method: str, metadata: Metadata | None) -> Iterator[Metadata | None]:
        begin = time.perf_counter()
        code = "OK"
        try:
            yield metadata
        except TaskdError as exc:
            code = _name(exc.code.name)
            raise
        except BaseException:
            code = _name(Status.CANCELLED.name)
            raise
        finally:
            self._shim_calls.labels(method, code).observe(time.perf_counter() - begin)

    def starting(self, binary: Binary) -> Binary:
        """The executable of a shim, watched."""
        return _MeteredBinary(binary, self._shim_starts, self._shim_start_seconds)

    def published(self, entry: Entry) -> None:
        """Count an event."""
        self._events.labels(entry.envelope.topic).inc()


class _MeteredBinary:
    def __init__(self, binary: Binary, starts: Counter, seconds: Histogram) -> None:
        self._binary = binary
        self._starts = starts
        self._seconds = seconds
        self.path = binary.path
        self.bundle = binary.bundle
        self.delete = binary.delete
        self.features = binary.features
        self.adopt = binary.adopt

    @property
    def deletes_after_shutdown(self) -> bool:
        return self._binary.deletes_after_shutdown

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        begin = time.perf_counter()
        outcome = "failed"
        try:
            made = await self._binary.start(options, group)
            outcome = "started"
        finally:
            self._seconds.observe(time.perf_counter() - begin)
            self._starts.labels(outcome).inc()
        return made


class _Events(Collector):
    """The journal and its readers."""

    def __init__(self, ask: Callable[[Callable[[], Any]], Any], journal: Journal, bus: Bus) -> None:
        self._ask = ask
        self._journal = journal
        self._bus = bus

    def collect(self) -> Iterable[Metric]:
        journal, bus = self._journal, self._bus
        figures = self._ask(
            lambda: (
                (journal.first, journal.last, journal.size, journal.repeats),
                bus.lags(),
                journal.cursors(),
            )
        )
        (first, last, size, repeats), lags, cursors = figures
        yield CounterMetricFamily(
            "taskd_events_repeated", "Events that shims sent, and the journal had", repeats
        )
        yield GaugeMetricFamily("taskd_journal_first_position", "Of the oldest event", first)
        yield GaugeMetricFamily("taskd_journal_last_position", "Of the newest event", last)
        yield GaugeMetricFamily("taskd_journal_size_bytes", "On the disk", size)
        yield GaugeMetricFamily("taskd_subscribers", "Readers of events", len(lags))
        yield GaugeMetricFamily(
            "taskd_subscriber_lag_events",
            "How many events the slowest subscriber is behind",
            max(lags, default=0),
        )
        behind = GaugeMetricFamily(
            "taskd_cursor_lag_events",
            "How many events a durable reader is behind",
            labels=["reader"],
        )
        for name, position in cursors.items():
            behind.add_metric([name], last - position)
        yield behind


class _Containers(Collector):
    def __init__(self, ask: Callable[[Callable[[], Any]], Any], usage: _AskUsage) -> None:
        self._ask = ask
        self._usage = usage

    def collect(self) -> Iterable[Metric]:
        return families(self._ask(self._usage))


_AskUsage = Callable[[], Awaitable[list[Usage]]]


@asynccontextmanager
async def serving(
    address: tuple[str, int], meters: Meters, journal: Journal, bus: Bus, usage: _AskUsage
) -> AsyncIterator[None]:
    """Answer scrapes on `address` as long as the context is open.

    Raises `FailedPrecondition` if the address cannot be used.
    """
    loop = asyncio.get_running_loop()

    def ask(question: Callable[[], Any]) -> Any:
        """The answer of a function or coroutine function that belongs to the event loop."""

        async def answer() -> Any:
            found = question()
            return await found if isinstance(found, Awaitable) else found

        return asyncio.run_coroutine_threadsafe(answer(), loop).result(_SCRAPE_SECONDS)

    meters.registry.register(_Events(ask, journal, bus))
    meters.registry.register(_Containers(ask, usage))
    host, port = address
    try:
        server, thread = start_http_server(port, host, meters.registry)
    except OSError as exc:
        raise FailedPrecondition(
            f"metrics on {host}:{port}: {exc.strerror}", verbatim=True
        ) from exc
    try:
        yield
    finally:
        await to_thread.run_sync(server.shutdown)
        await to_thread.run_sync(thread.join)
        server.server_close()


def _name(code: str) -> str:
    """A code as Go has it."""
    if code in ("OK", "CANCELLED"):
        return {"OK": "OK", "CANCELLED": "Canceled"}[code]
    return code.title().replace("_", "")
