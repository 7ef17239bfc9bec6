"""Unix socket addresses, in the forms that containerd and shims write them."""

from __future__ import annotations

import asyncio
import os
import socket

from taskd.errors import Unavailable

__all__ = ["dial", "listen", "socket_name"]

_RETRY_SECONDS = 0.005


def socket_name(address: str) -> str:
    """What connect(2) and bind(2) take for `address`.

    `address` is a path, ``unix://PATH``, or the name of an abstract socket, which begins with
    ``@`` or NUL (after ``unix://`` as well, as in Go's ``net``).
    """
    name = address.removeprefix("unix://")
    return f"\0{name[1:]}" if name.startswith("@") else name


async def dial(address: str, *, timeout: float | None) -> socket.socket:
    """A socket connected to `address` within `timeout` seconds; it does not block.

    Raises `Unavailable`, which names the address and what is wrong with it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout):
            while True:
                try:
                    sock.connect(socket_name(address))
                except BlockingIOError:
                    # The listener's backlog is full, and unix sockets do not queue for it:
                    # there is nothing to wait for, as asyncio's sock_connect would (connect(2)).
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    return sock
    except TimeoutError:
        sock.close()
        raise Unavailable(f"connecting to {address}: no answer in {timeout:g} s") from None
    except (OSError, ValueError) as exc:
        sock.close()
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise Unavailable(f"connecting to {address}: {reason}") from exc
    except BaseException:
        sock.close()
        raise


def listen(address: str | os.PathLike[str]) -> socket.socket:
    """A socket bound to `address`. Raises OSError as bind(2) does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(socket_name(os.fspath(address)))
    except BaseException:
        sock.close()
        raise
    return sock
