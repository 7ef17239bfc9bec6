"""Sends the events of a shim to its daemon: in order, each once, however long the daemon is away.

Source: containerd's ``runtime/v2/shim/publisher.go``, which sends what failed once more out of
order, and gives it up after five attempts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

import betterproto2

from taskd import ttrpc
from taskd.codec import encode
from taskd.errors import DeadlineExceeded, TaskdError, Unavailable
from taskd.proto.containerd import events
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.containerd.types import Envelope
from taskd.wellknown import pack, timestamp, to_any

__all__ = ["Publisher"]

log = logging.getLogger(__name__)

_TOPICS: dict[type[betterproto2.Message], str] = {
    events.TaskCreate: "/tasks/create",
    events.TaskStart: "/tasks/start",
    events.TaskOom: "/tasks/oom",
    events.TaskExit: "/tasks/exit",
    events.TaskDelete: "/tasks/delete",
    events.TaskExecAdded: "/tasks/exec-added",
    events.TaskExecStarted: "/tasks/exec-started",
    events.TaskPaused: "/tasks/paused",
    events.TaskResumed: "/tasks/resumed",
    events.TaskCheckpointed: "/tasks/checkpointed",
}
_SERVICE = "containerd.services.events.ttrpc.v1.Events"

QUEUE = 16384
"""Events that wait for a daemon at most; then the oldest are lost, and the log says so."""
_CALL_SECONDS = 5.0
_RETRY_SECONDS = (0.05, 0.2, 1.0)
_REFUSALS = 5
"""Times that a daemon may refuse an event before it is given up."""


class Publisher:
    """Events on their way to the daemon that listens at `address`."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._queue: deque[bytes] = deque()
        self._client: ttrpc.Client | None = None
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, event: betterproto2.Message) -> None:
        """Put `event`, which happens now, behind all others."""
        envelope = Envelope(
            timestamp=timestamp(time.time_ns()),
            namespace=self._namespace,
            topic=_TOPICS[type(event)],
            event=to_any(pack(event)),
        )
        if len(self._queue) >= QUEUE:
            log.error("the daemon is away for too long; the oldest event is lost")
            self._queue.popleft()
        self._queue.append(encode(ForwardRequest(envelope=envelope)))
        self._empty.clear()
        self._changed.set()

    async def run(self) -> None:
        """Send what is put in, for ever."""
        failures = refusals = 0
        while True:
            while self._queue:
                try:
                    await self._send(self._queue[0])
                except ttrpc.ConnectionClosed:
                    pass
                except (Unavailable, DeadlineExceeded) as exc:
                    # It is not there, or is late, and that may last.
                    log.warning("publishing an event: %s", exc)
                except TaskdError as exc:
                    refusals += 1
                    log.warning("publishing an event: %s", exc)
                else:
                    failures = refusals = 0
                    self._queue.popleft()
                    continue
                failures += 1
                if refusals >= _REFUSALS:
                    log.error("the daemon refuses an event, which is lost")
                    self._queue.popleft()
                    failures = refusals = 0
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])
            self._empty.set()
            self._changed.clear()
            await self._changed.wait()

    async def sent(self) -> None:
        """Wait until all is sent, however long that takes."""
        await self._empty.wait()

    async def drained(self, timeout: float) -> None:
        """Wait until all is sent, for at most `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.sent()
        except TimeoutError:
            log.error("%d events are lost: no daemon took them", len(self._queue))

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _send(self, request: bytes) -> None:
        if self._client is None:
            self._client = await ttrpc.Client.connect(self._address, timeout=_CALL_SECONDS)
        try:
            await self._client.call(_SERVICE, "Forward", request, timeout=_CALL_SECONDS)
        except ttrpc.ConnectionClosed:
            # A daemon that was restarted listens at the same address.
            self._client = None
            raise
