"""The process that a shim's ``start`` leaves behind: it serves until its last container is gone."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskd import stacks, ttrpc
from taskd.shim.adoption import Adopter
from taskd.shim.container import Container
from taskd.shim.custody import custody
from taskd.shim.departure import depart
from taskd.shim.flags import Flags
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.sandboxes import SandboxService
from taskd.shim.service import TaskService
from taskd.shim.tenants import Tenants

__all__ = ["serve"]

log = logging.getLogger("taskd.shim")

_FLUSH_SECONDS = 5.0
_GRACE_SECONDS = 1.0
_ALONE_SECONDS = 60.0
"""For a daemon that has been killed to be there again, to a process in which nothing lives."""
_LOOKS = 6
"""At whether it is, in that time."""


def serve(
    kind: type[Container],
    flags: Flags,
    listener: socket.socket,
    log_fifo: Path,
    bundles: Sequence[Path] = (),
) -> None:
    """Serve containers of `kind` on `listener`, until the daemon wants an end and none is left.

    In `bundles` are those of a shim that has died, which are gone on with first.
    """
    _set_up_log(log_fifo, flags.debug)
    # Nothing of what there is now becomes garbage; looking at it would copy its pages.
    gc.freeze()
    # The process ends with it, so it is not closed.
    asyncio.new_event_loop().run_until_complete(_serving(kind, flags, listener, bundles))


async def _serving(
    kind: type[Container],
    flags: Flags,
    listener: socket.socket,
    bundles: Sequence[Path],
) -> None:
    reaper = Reaper()
    reaper.install()
    address = os.environ.get("TTRPC_ADDRESS") or f"{flags.address}.ttrpc"
    publisher = Publisher(address, flags.namespace)
    kept = custody(kind, os.environ, flags.namespace)
    service = TaskService(kind, flags.namespace, reaper, publisher, kept)
    tenants = service.tenants
    socket_path = listener.getsockname()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFifo):
            stacks.show_on(signal.SIGUSR1, handler.fileno())
    background = [asyncio.get_running_loop().create_task(publisher.run())]
    if (keeper := kept.keeper) is not None:
        keeper.connect()
        if bundles:
            adopter = Adopter(kind, flags.namespace, reaper, keeper, publisher.publish)
            await adopter.adopt(bundles, service.take_over, tenants.admit_sandbox)
        background.append(asyncio.get_running_loop().create_task(keeper.run()))
        departing = depart(keeper, tenants, publisher)
        background.append(asyncio.get_running_loop().create_task(departing))
    services = service.services()
    if kind.sandboxes is not None:
        sandboxes = SandboxService(kind.sandboxes, flags.namespace, reaper, service)
        services.append(sandboxes.service())
    async with ttrpc.Server(services) as server:
        await server.start(listener)
        log.info("serving %s", flags.id)
        if "TASKD_SHIM_GROUP" in os.environ:
            ending = asyncio.get_running_loop().create_task(_end_alone(server, tenants))
            background.append(ending)
        await tenants.stopped.wait()
        await publisher.drained(_FLUSH_SECONDS)
        with suppress(FileNotFoundError):
            os.unlink(socket_path)  # noqa: PTH108
        await server.aclose(grace=_GRACE_SECONDS)
    await service.aclose()
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    await publisher.aclose()


async def _end_alone(server: ttrpc.Server, tenants: Tenants) -> None:
    """End what holds containers for a daemon when there are none, nor a daemon to end it."""
    alone = 0
    while alone < _LOOKS:
        await asyncio.sleep(_ALONE_SECONDS / _LOOKS)
        alone = 0 if server.has_clients or not tenants.is_idle else alone + 1
    log.info("nothing lives here, and there is no daemon: ending")
    tenants.end_if_idle()


class _LogFifo(logging.Handler):
    """Writes to the bundle's FIFO; what nobody takes is dropped, for a shim must not wait."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # With both ends open it does not matter whether a daemon reads.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            os.write(self._fd, f"{self.format(record)}\n".encode(errors="backslashreplace"))


def _set_up_log(fifo: Path, debug: bool) -> None:
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    with suppress(OSError):
        handler = _LogFifo(fifo)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.handlers = [handler]
