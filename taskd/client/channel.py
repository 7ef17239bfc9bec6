"""A channel to a daemon whose errors are taskd's, and which finds a daemon that comes back."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
from grpclib.events import SendRequest, listen
from grpclib.exceptions import GRPCError, StreamTerminatedError

from taskd.errors import TaskdError, Unavailable, from_status
from taskd.grpc import channel

__all__ = ["LEASE", "Channel", "naming"]

T = TypeVar("T")

RETRY_SECONDS = 0.1
LEASE_HEADER = "containerd-lease"

LEASE: ContextVar[str] = ContextVar("LEASE", default="")
"""The lease under which calls are made: what they make is kept for it."""


class Channel(channel.Channel):
    """Every stub on it raises the classes of `taskd.errors`.

    Once it has been connected, a call waits for a daemon that is restarted: for `patience` seconds.
    """

    def __init__(self, path: Path, *, namespace: str, patience: float) -> None:
        super().__init__(path, namespace=namespace)
        self.path = path
        self.namespace = namespace
        self.patience = patience
        self._known = False
        self._away = False
        """The last attempt to connect has found nobody."""

        async def under_lease(event: SendRequest) -> None:
            if lease := LEASE.get():
                event.metadata[LEASE_HEADER] = lease

        listen(self, SendRequest, under_lease)

    def request(self, *arguments: Any, **options: Any) -> Any:
        return _Call(super().request(*arguments, **options), self.path)

    async def _create_connection(self) -> Any:
        deadline = time.monotonic() + (self.patience if self._known else 0)
        while True:
            try:
                protocol = await super()._create_connection()
            except OSError as exc:
                if time.monotonic() >= deadline:
                    self._away = True
                    reason = (exc.strerror or str(exc)).lower()
                    raise Unavailable(f"no daemon at {self.path}: {reason}") from exc
            else:
                self._known, self._away = True, False
                return protocol
            await anyio.sleep(RETRY_SECONDS)

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that changes nothing, again while the daemon is away.

        Raises `Unavailable` once there has been none for `patience` seconds.
        """
        since = time.monotonic()
        while True:
            begun = time.monotonic()
            try:
                return await call()
            except Unavailable:
                now = time.monotonic()
                if now - begun > 1 and not self._away:  # it was under way: the first failure
                    since = now
                if now - since >= self.patience:
                    raise
            await anyio.sleep(RETRY_SECONDS)


class _Call:
    """grpclib's stream, but for what it raises."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path

    async def __aenter__(self) -> Any:
        return await self._stream.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._stream.__aexit__(kind, error, traceback)
        except Exception as exc:
            error = exc
        match error:
            case GRPCError():
                raise from_status(error.status.value, error.message or "") from None
            case StreamTerminatedError() | ConnectionError():
                raise Unavailable(f"the connection to {self._path} was lost") from error
            case Exception() if kind is None:
                raise error


@contextmanager
def naming(what: str, name: str) -> Iterator[None]:
    """See to it that an error says what it is about: ``container "a": …``."""
    try:
        yield
    except TaskdError as exc:
        said = re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", exc.message)
        if isinstance(exc, Unavailable) or said:
            raise
        raise exc.within(f'{what} "{name}"') from None
