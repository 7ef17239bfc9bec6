"""Leaving all containers to another process on purpose, at a moment when nothing is on its way.

A shim that is killed leaves whatever it was doing undone. One that the daemon dismisses comes to an
end with that first: then it has told all that happened, and what it has read for a client and not
written is kept with its other descriptors.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import NoReturn

from taskd.errors import TaskdError, Unavailable
from taskd.shim.keeper import Keeper
from taskd.shim.publisher import Publisher
from taskd.shim.tenants import Tenants

__all__ = ["depart"]

log = logging.getLogger(__name__)

_SECONDS = 10.0
"""For what is under way to come to its end."""


async def depart(keeper: Keeper, tenants: Tenants, publisher: Publisher) -> NoReturn:
    """End this process when the daemon dismisses it, unless it cannot leave; for ever."""
    while True:
        await keeper.dismissed.wait()
        try:
            async with asyncio.timeout(_SECONDS):
                await _leave(keeper, tenants, publisher)
        except TimeoutError:
            reason = f"what is under way has not ended in {_SECONDS:g} s"
        except TaskdError as exc:
            reason = exc.message
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
        log.warning("staying: %s", reason)
        keeper.stay(reason)


async def _leave(keeper: Keeper, tenants: Tenants, publisher: Publisher) -> NoReturn:
    """Raises `Unavailable`, OSError, TimeoutError: then this process goes on as before."""
    async with tenants.standstill() as processes:
        try:
            for process in processes:
                process.freeze()
            if not await keeper.settled():
                raise Unavailable("the daemon does not take what it is to keep", verbatim=True)
            # Last of all: nothing is to happen after it.
            await publisher.sent()
            log.info("leaving what there is to another process")
            # In good order, things would be closed that are still needed.
            os._exit(0)
        finally:
            for process in processes:
                process.thaw()
