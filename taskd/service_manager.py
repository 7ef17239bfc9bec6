"""The service manager that started the daemon, if one did: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

import anyio

__all__ = ["ServiceManager"]

log = logging.getLogger(__name__)

_PAUSE = 0.1


class ServiceManager:
    def __init__(self, address: str) -> None:
        """`address` is what ``NOTIFY_SOCKET`` has; empty if there is no manager."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    @classmethod
    def taken(cls) -> ServiceManager:
        """The one of the environment, in which it is no more: what we start is not to speak to it.

        (A runtime that finds it there waits for its container to say that it is ready.)
        """
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    async def tell(self, state: str) -> None:
        """Say in which state we are. Whatever is wrong with the manager is logged, and no error.

        As long as it does not read what it has been sent, this waits.
        """
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.connect(self._address)
                while True:
                    try:
                        manager.send(state.encode())
                    except BlockingIOError:
                        await anyio.sleep(_PAUSE)
                    else:
                        return
        except OSError as exc:
            log.warning("telling the service manager at %s: %s", self._address, exc.strerror)
