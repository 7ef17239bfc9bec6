"""Content that a transfer writes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio

from taskd.content import ContentStore, Writer
from taskd.errors import AlreadyExists, NotFound, Unavailable

__all__ = ["Contents"]

_MAX_PAUSE = 2.0


class Contents:
    """A namespace's content, as it is written under one lease."""

    def __init__(self, store: ContentStore, namespace: str, lease: str) -> None:
        self.store = store
        self.namespace = namespace
        self.lease = lease

    @asynccontextmanager
    async def writer(self, ref: str, total: int = 0, expected: str = "") -> AsyncIterator[Writer]:
        """As the store's, but waits for whoever else is writing the same.

        Raises `AlreadyExists` if it is there.
        """
        pause = 0.016
        async with AsyncExitStack() as stack:
            while True:
                try:
                    writer = await stack.enter_async_context(
                        self.store.writer(self.namespace, ref, total, expected, self.lease)
                    )
                except Unavailable:
                    await anyio.sleep(random.uniform(0, pause))  # noqa: S311 - not to meet again
                    pause = min(pause * 2, _MAX_PAUSE)
                else:
                    break
            yield writer

    async def abort(self, ref: str) -> None:
        """Throw away what was written, if anything was."""
        with anyio.CancelScope(shield=True), suppress(NotFound):
            await self.store.abort(self.namespace, ref, self.lease)

    async def put(self, ref: str, content: bytes, labels: Mapping[str, str] | None = None) -> str:
        """Store something small, if it is not there; returns its digest."""
        with suppress(AlreadyExists):
            async with self.writer(ref) as writer:
                if writer.status.offset:
                    await writer.truncate()
                await writer.write(content)
                await writer.commit(len(content), "", labels or {})
                return writer.digest
        return writer.digest
