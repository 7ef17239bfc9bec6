"""A connection to NATS, and what the messages in the stream look like.

A message's payload is a ``containerd.types.Envelope``. Its headers say where it comes from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import nats.aio.client
import nats.errors

from taskd.errors import Unavailable, words
from taskd.nats.settings import NatsConfig, without_credentials

__all__ = ["ACKED", "JOURNAL", "NODE", "POSITION", "Headers", "connected", "position"]

NODE = "Taskd-Node"
JOURNAL = "Taskd-Journal"
"""Id of the journal, which tells its positions from those of another one of the same node."""
POSITION = "Taskd-Position"
ACKED = "Taskd-Acked"
"""Position, and number in the stream, of an event up to which all are in the stream."""

Headers = Mapping[str, str]

_CONNECT_SECONDS = 5
_CLOSE_SECONDS = 1.0


class _Client(nats.aio.client.Client):
    """With `secure`, it says nothing of itself to a server that does not encrypt."""

    def __init__(self, secure: bool) -> None:
        super().__init__()
        self._secure = secure

    def _connect_command(self) -> bytes:
        # What has the credentials. nats-py encrypts if the server asks for it, and else does not.
        assert self._current_server is not None
        encrypted = self._current_server.uri.scheme == "wss" or (
            self._current_server.uri.scheme != "ws" and self._server_info.get("tls_required")
        )
        if self._secure and not encrypted:
            raise nats.errors.Error("the server does not offer TLS")
        return super()._connect_command()


if not hasattr(nats.aio.client.Client, "_connect_command"):
    raise ImportError("this nats-py is not known: it could send a password unencrypted")


@asynccontextmanager
async def connected(
    settings: NatsConfig, lost: Callable[[], object]
) -> AsyncIterator[nats.aio.client.Client]:
    """A connection to one of the servers; `lost` is called when it has ended by itself.

    It does not come back by itself: what was on its way is uncertain, which only the user of the
    connection can clear up. Raises `Unavailable` if no server takes us.
    """
    client = _Client(settings.is_secure)
    reasons: list[Exception] = []
    leaving = False

    async def failed(reason: Exception) -> None:
        reasons.append(reason)

    async def closed() -> None:
        if not leaving:
            lost()

    try:
        await client.connect(
            servers=list(settings.servers),
            error_cb=failed,
            closed_cb=closed,
            name="taskd",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_SECONDS,
            tls=settings.tls(),
            user=settings.user or None,
            password=settings.password or None,
            user_credentials=str(settings.credentials) if settings.credentials else None,
        )
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        reason = reasons[-1] if reasons else exc
        text = f"no NATS server at {', '.join(settings.servers)}: {words(reason)}"
        raise Unavailable(without_credentials(text)) from exc
    try:
        yield client
    finally:
        leaving = True
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await client.close()


def position(headers: Headers | None, journal: str) -> int | None:
    """Position, in a journal, of the event in a message with these headers, if it is from there."""
    if not headers or headers.get(JOURNAL) != journal:
        return None
    return int(headers[POSITION])
