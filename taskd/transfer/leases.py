"""Leases of transfers, which keep what is on its way from the garbage collector."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import anyio

from taskd.errors import NotFound
from taskd.metadata import LeaseStore
from taskd.metadata.leases import EXPIRE_LABEL

__all__ = ["Leases"]

_LABEL = "io.taskd.transfer"
"""Says which image it is for, so that who takes it up again can let go of what is left."""
_LASTS = timedelta(hours=24)


class Leases:
    def __init__(self, store: LeaseStore) -> None:
        self._store = store
        self._own: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def held(self, namespace: str, given: str | None, subject: str) -> AsyncIterator[str]:
        """The lease `given`, or one of its own, as long as the context is open.

        With it go those for the same subject which an earlier daemon has left, since whatever they
        hold has been taken over or is of no use.
        """
        if given:
            yield given
            return
        own = f"{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)}"
        expires = (datetime.now(UTC) + _LASTS).strftime("%Y-%m-%dT%H:%M:%SZ")
        labels = {EXPIRE_LABEL: expires}
        if subject:
            labels[_LABEL] = subject[:1024]
        self._own.add((namespace, own))
        try:
            await self._store.create(namespace, own, labels)
            try:
                yield own
            finally:
                with anyio.CancelScope(shield=True):
                    await self._delete(namespace, own)
            # Only now: what failed once more may be taken up once more.
            if subject:
                await self._delete_left(namespace, subject[:1024])
        finally:
            self._own.discard((namespace, own))

    async def _delete_left(self, namespace: str, subject: str) -> None:
        for lease in await self._store.list(namespace):
            if lease.labels.get(_LABEL) == subject and (namespace, lease.id) not in self._own:
                await self._delete(namespace, lease.id)

    async def _delete(self, namespace: str, lease: str) -> None:
        with suppress(NotFound):  # it has expired, or somebody has deleted it
            await self._store.delete(namespace, lease)
