"""What is left of a shim, and how each part of it goes; what fails is logged, and answered."""

from __future__ import annotations

import logging

import anyio
from anyio import to_thread

from taskd.errors import TaskdError
from taskd.runtime.bundle import Bundle
from taskd.runtime.generation import Binary
from taskd.runtime.held import listening
from taskd.runtime.shim import Shim
from taskd.runtime.spawn import kill_group
from taskd.runtime.types import Exit
from taskd.sockets import remove_stale

__all__ = ["clean_up", "kill", "remove_bundle", "remove_socket"]

log = logging.getLogger(__name__)

_DELETES = 2
"""Times that `delete` is run if it fails: whoever killed the shim may have killed that, too."""


async def kill(shim: Shim, seconds: float) -> None:
    """Kill a process, once; all who want it wait, for so long at most."""
    async with shim.killing:
        if shim.killed or shim.foreign:
            return
        shim.killed = True
        try:
            if await shim.kill(seconds):
                return
            if shim.bootstrap is not None and shim.connection is None:
                kill_group(shim.bootstrap.group)
            for process in await to_thread.run_sync(listening, shim.socket):
                log.warning("killing process %d, which listens on %s", process.pid, shim.socket)
                try:
                    await process.kill(seconds)
                finally:
                    process.release()
        except OSError as exc:
            log.error("killing what listens on %s: %s", shim.socket, exc)


async def remove_socket(shim: Shim, *, inherited: bool = False) -> bool:
    """Remove what nobody listens on, or only those who have `inherited` it from what was killed.

    Whether there is nothing now.
    """
    if shim.foreign:
        return True
    try:
        if inherited:
            shim.socket.unlink(missing_ok=True)
        else:
            await to_thread.run_sync(remove_stale, shim.socket)
    except (TaskdError, OSError):
        return False
    return True


async def clean_up(binary: Binary, seconds: float) -> Exit | None:
    """Run the shim's ``delete``, for so long at most; what that tells of the exit, if it does."""
    key = binary.bundle.key
    for _ in range(_DELETES):
        try:
            with anyio.fail_after(seconds):
                return await binary.delete()
        except TimeoutError:
            log.warning("cleaning up after shim %s: timeout", key)
            break
        except (TaskdError, OSError) as exc:
            log.warning("cleaning up after shim %s: %s", key, exc)
    return None


async def remove_bundle(bundle: Bundle) -> bool:
    """Whether it is gone."""
    try:
        await to_thread.run_sync(bundle.delete)
    except OSError as exc:
        log.error("removing bundle %s: %s", bundle.path, exc)
        return False
    return True
