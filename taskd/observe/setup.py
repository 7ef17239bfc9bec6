"""What of this package the configuration asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from taskd import ttrpc
from taskd.config import Config
from taskd.events import Bus, Journal
from taskd.extras import missing
from taskd.observe import Instrument
from taskd.observe.calls import LoggedCalls
from taskd.observe.recorder import Recorder
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary, Generation, TaskApi
from taskd.tasks.service import Usage

if TYPE_CHECKING:
    from taskd.observe.metrics import Meters

__all__ = ["Observed", "observed"]


class Observed(NamedTuple):
    """The instruments, innermost first."""

    config: Config
    meters: Meters | None
    recorder: Recorder
    instruments: tuple[Instrument, ...]

    def generation(self, plain: Generation) -> Generation:
        """The same shims, watched."""
        meters, recorder = self.meters, self.recorder

        def task(connection: Connection, bundle: Bundle, bootstrap: Bootstrap) -> TaskApi:
            for instrument in self.instruments:
                connection = instrument.outgoing(connection, bundle)
            return plain.task(connection, bundle, bootstrap)

        def binary(path: Path, bundle: Bundle) -> Binary:
            found = plain.binary(path, bundle)
            return recorder.starting(meters.starting(found) if meters else found)

        return replace(plain, task=task, binary=binary)

    def served(self, service: ttrpc.Service) -> ttrpc.Service:
        """A service that shims call, watched."""
        for instrument in self.instruments:
            if isinstance(instrument, LoggedCalls | Recorder):
                service = instrument.served(service)
        return service

    def scraped(
        self, journal: Journal, bus: Bus, usage: Callable[[], Awaitable[list[Usage]]]
    ) -> AbstractAsyncContextManager[None]:
        """Answers Prometheus as long as it is open, if it is to be answered."""
        if self.meters is None or self.config.metrics is None:
            return nullcontext()
        from taskd.observe.metrics import serving

        journal.listen(self.meters.published)
        return serving(self.config.metrics, self.meters, journal, bus, usage)


@asynccontextmanager
async def observed(config: Config) -> AsyncIterator[Observed]:
    """Raises `FailedPrecondition` if what is asked for is not installed."""
    meters = None
    if config.metrics is not None:
        try:
            from taskd.observe.metrics import Meters
        except ImportError as exc:
            raise missing("[metrics]", "prometheus-client", "metrics", exc) from exc
        meters = Meters()
    known: tuple[Instrument, ...] = (meters,) if meters else ()
    if config.log_level == "trace":
        known = (*known, LoggedCalls())
    recorder = Recorder()
    if config.tracing is None:
        yield Observed(config, meters, recorder, (*known, recorder))
        return
    try:
        from taskd.observe.tracing import tracing
    except ImportError as exc:
        raise missing("[tracing]", "OpenTelemetry", "otel", exc) from exc
    async with tracing(config.tracing) as traces:
        yield Observed(config, meters, recorder, (*known, traces, recorder))
