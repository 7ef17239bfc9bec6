"""The daemon's part in events: a ttrpc server to which shims forward them.

Source: containerd's ``services/events/ttrpc.go``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import betterproto2

from taskd import ttrpc
from taskd.codec import encode
from taskd.errors import InvalidArgument
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import from_any, nanoseconds, unpack

__all__ = ["Received", "Receiver"]

_SERVICE = "containerd.services.events.ttrpc.v1.Events"


@dataclass(frozen=True)
class Received:
    """One event, as a shim forwarded it."""

    namespace: str
    topic: str
    timestamp: int
    """When it happened, as its envelope says: nanoseconds since the epoch."""
    event: betterproto2.Message | None
    """None if its type is none of containerd's events."""

    @property
    def kind(self) -> str:
        return self.topic.removeprefix("/tasks/")

    def of(self, container: str) -> bool:
        return getattr(self.event, "container_id", None) == container

    @property
    def process(self) -> str:
        """Id of the exec that it is about; empty for the container's own process."""
        event = self.event
        name: str = getattr(event, "exec_id", "") or getattr(event, "id", "")
        return "" if name == getattr(event, "container_id", "") else name

    def __str__(self) -> str:
        return f"{self.kind} {self.process}".strip()


class Receiver:
    """Takes events at the socket `path`, while it is `start`-ed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Received] = []
        self._arrived = asyncio.Condition()
        self._server: ttrpc.Server | None = None

    async def start(self) -> None:
        self._server = ttrpc.Server([ttrpc.Service(_SERVICE, {"Forward": self._forward})])
        await self._server.start(self.path)

    async def stop(self) -> None:
        """Be away, as a daemon is that is restarted."""
        if self._server is not None:
            await self._server.aclose()
            self._server = None

    async def until(self, wanted: Callable[[list[Received]], bool], seconds: float) -> bool:
        """Wait until the events that have come are what is `wanted`, or the time is over."""
        try:
            async with asyncio.timeout(seconds), self._arrived:
                await self._arrived.wait_for(lambda: wanted(self.events))
        except TimeoutError:
            return False
        return True

    async def _forward(self, context: ttrpc.CallContext, payload: bytes) -> bytes:
        envelope = ttrpc.unmarshal(ForwardRequest, payload).envelope
        if envelope is None:
            raise InvalidArgument("no envelope")
        event = from_any(envelope.event)
        received = Received(
            envelope.namespace,
            envelope.topic,
            nanoseconds(envelope.timestamp) if envelope.timestamp else time.time_ns(),
            unpack(event) if event is not None else None,
        )
        async with self._arrived:
            self.events.append(received)
            self._arrived.notify_all()
        return encode(Empty())
