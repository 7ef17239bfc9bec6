"""Content from a registry into the store, whatever the registry does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from taskd.content import Writer
from taskd.errors import FailedPrecondition, InvalidArgument, TaskdError, Unknown
from taskd.images.descriptors import Descriptor, key
from taskd.transfer.writing import Contents

if TYPE_CHECKING:
    from taskd.registry.resolver import Registry

__all__ = ["Fetcher"]

_log = logging.getLogger(__name__)

_PIECE = 1 << 20
_RETRIES = 4
"""Times in a row that a registry may end too early without having sent `_WORTH_IT` bytes."""
_WORTH_IT = 1 << 20
_PAUSE = 0.1
"""Seconds until the first of them is repeated; each time it is twice as long."""


class Fetcher:
    def __init__(
        self, registry: Registry, contents: Contents, limiter: anyio.CapacityLimiter
    ) -> None:
        """`limiter` bounds how many layers there are on their way at once, of all transfers."""
        self._registry = registry
        self._contents = contents
        self._limiter = limiter
        self._writers: dict[str, Writer] = {}

    def offset(self, descriptor: Descriptor) -> int | None:
        """Bytes that have come, of what is being fetched."""
        writer = self._writers.get(descriptor.digest)
        return None if writer is None else writer.status.offset

    async def fetch(self, descriptor: Descriptor, labels: Mapping[str, str]) -> None:
        """Have the content, with these labels, from where an earlier fetch was interrupted.

        Raises `AlreadyExists` if it is there, `FailedPrecondition` for anything else than what was
        to come, `InvalidArgument`, and what the registry and the store raise.
        """
        if descriptor.size == 0:
            raise InvalidArgument(
                f"unable to fetch descriptor ({descriptor.digest}) which reports content size of "
                "zero"
            )
        ref = key(descriptor)
        try:
            async with self._contents.writer(ref, descriptor.size, descriptor.digest) as writer:
                self._writers[descriptor.digest] = writer
                try:
                    await self._fill(descriptor, writer)
                    await writer.commit(descriptor.size, descriptor.digest, labels)
                except FailedPrecondition as exc:
                    raise exc.within(f'failed commit on ref "{ref}"') from exc
                finally:
                    del self._writers[descriptor.digest]
        except FailedPrecondition:
            # What has come is not what it should be: another time it is to begin anew.
            await self._contents.abort(ref)
            raise

    async def _fill(self, descriptor: Descriptor, writer: Writer) -> None:
        if descriptor.data and len(descriptor.data) == descriptor.size:
            if writer.status.offset:
                await writer.truncate()
            await writer.write(descriptor.data)
            return
        failures = 0
        while (before := writer.status.offset) < descriptor.size:
            try:
                async with self._limiter:
                    await self._copy(descriptor, writer)
            except _Cut as exc:
                gained = writer.status.offset - before
                failures = 0 if gained >= _WORTH_IT else failures + 1
                if failures > _RETRIES:
                    raise exc.error from exc
                _log.info("%s: %s; once more from there", key(descriptor), exc.error)
                await anyio.sleep(_PAUSE * 2.0 ** (failures - 1))

    async def _copy(self, descriptor: Descriptor, writer: Writer) -> None:
        """Raises `_Cut` if it ends before its end."""
        offset = writer.status.offset
        pieces = self._registry.fetch(
            descriptor.media_type, descriptor.digest, offset, descriptor.urls
        )
        waiting: list[bytes] = []
        held = 0
        begun = False
        cut: TaskdError | None = None
        async with aclosing(pieces):
            while True:
                try:
                    piece = await anext(pieces, None)
                except Unknown as exc:
                    if not begun:
                        raise
                    cut = exc
                    break
                if piece is None:
                    break
                begun = True
                offset += len(piece)
                if offset > descriptor.size:
                    words = f'"{key(descriptor)}" failed size validation'
                    raise FailedPrecondition(f"{words}: more than {descriptor.size} bytes")
                waiting.append(piece)
                held += len(piece)
                if held >= _PIECE:
                    await writer.write(b"".join(waiting))
                    waiting, held = [], 0
        await writer.write(b"".join(waiting))
        if writer.status.offset < descriptor.size:
            raise _Cut(
                cut
                or Unknown(
                    f"short read: expected {descriptor.size} bytes but got "
                    f"{writer.status.offset}: unexpected EOF"
                )
            )


class _Cut(Exception):
    def __init__(self, error: TaskdError) -> None:
        super().__init__(error)
        self.error = error
