"""Many events at once."""

from __future__ import annotations

import asyncio
import time

from harness.daemons import Daemon
from taskd import codec, ttrpc
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.containerd.types import Envelope
from taskd.proto.google.protobuf import Any
from taskd.wellknown import timestamp

__all__ = ["publish_as_shims"]

SHIMS = 4
_AT_ONCE = 32


async def publish_as_shims(daemon: Daemon, count: int) -> None:
    """Send `count` events as shims do, from a few connections, each many at a time."""
    numbers = iter(range(count))
    begin = time.time_ns()

    async def send(shim: ttrpc.Client) -> None:
        for number in numbers:
            envelope = Envelope(
                timestamp=timestamp(begin + number),
                namespace="default",
                topic=f"/load/{number}",
                event=Any(type_url="a.Type", value=b"what a small event holds"),
            )
            await shim.call(
                "containerd.services.events.ttrpc.v1.Events",
                "Forward",
                codec.encode(ForwardRequest(envelope=envelope)),
            )

    shims = [await ttrpc.Client.connect(f"unix://{daemon.address}.ttrpc") for _ in range(SHIMS)]
    try:
        await asyncio.gather(*(send(shim) for shim in shims for _ in range(_AT_ONCE)))
    finally:
        for shim in shims:
            await shim.aclose()
