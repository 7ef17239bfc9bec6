"""The asyncio client for containerd's API: for taskd, and for containerd 1.6 and later.

    async with connect() as client:
        async with client.run("alpine", ["echo", "hello"]) as container:
            async for line in container.lines():
                print(line)
            assert (await container.wait()).code == 0

What is in ``async with`` is ended and removed with it, whatever happens. What it raises are the
classes of `taskd.errors`, which name the thing that they are about.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskd.client.client import Client, Options
    from taskd.client.container import Container
    from taskd.client.events import Event
    from taskd.client.process import Completed, Exit, Process
    from taskd.client.spec import Limits
    from taskd.client.stats import Stats

__all__ = [
    "Client",
    "Completed",
    "Container",
    "Event",
    "Exit",
    "Limits",
    "Options",
    "Process",
    "Stats",
    "connect",
]

_HOMES = {
    "Client": "client",
    "Completed": "process",
    "Container": "container",
    "Event": "events",
    "Exit": "process",
    "Limits": "spec",
    "Options": "client",
    "Process": "process",
    "Stats": "stats",
}


def connect(
    address: Path | str | None = None, namespace: str | None = None, *, patience: float = 10.0
) -> Client:
    """A client, for ``async with``, of the daemon at `address`, or at the first usual place.

    These are ``TASKD_ADDRESS``, ``CONTAINERD_ADDRESS``, and where taskd and containerd serve by
    themselves; `namespace` is by default ``CONTAINERD_NAMESPACE``, or ``default``. When the daemon
    is restarted, a call waits for it, for `patience` seconds. Raises `Unavailable`, which says what
    was tried.
    """
    from taskd.client.client import Client

    return Client(address, namespace, patience=patience)


def __getattr__(name: str) -> Any:
    # gRPC and protobuf are loaded by those who speak, and not by those who only import.
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"taskd.client.{home}"), name)
