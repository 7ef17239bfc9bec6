"""Work that comes to its end, whatever happens meanwhile to the one who wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["Made", "whatever_happens"]


GRACE_SECONDS = 20.0
"""For something to be made whose maker is not wanted any more; then it is given up."""


async def whatever_happens(work: Coroutine[Any, Any, object]) -> None:
    """Await the end of `work`, however often the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    cancelled = await _end(task, None)
    task.result()
    if cancelled is not None:
        raise cancelled


async def _end(task: asyncio.Task[Any], grace: float | None) -> asyncio.CancelledError | None:
    """Wait for the end of `task`; with what the caller has been cancelled meanwhile.

    From then on it has `grace` seconds.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError as exc:
        cancelled = exc
    else:
        return None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                if not (await asyncio.wait([task], timeout=grace))[0]:
                    task.cancel()
            except asyncio.CancelledError as exc:
                cancelled = exc
    return cancelled


class _Leaves(Protocol):
    async def leave(self) -> None:
        """End it and remove it, with all that it has."""


L = TypeVar("L", bound=_Leaves)


class Made(Generic[L]):
    """Something that is made: awaited, it stays; in ``async with``, it goes when that ends."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, L]]) -> None:
        self._maker = make
        self._context: AbstractAsyncContextManager[L] | None = None

    def __await__(self) -> Generator[Any, None, L]:
        return self._make().__await__()

    async def _make(self) -> L:
        """Cancelled in the middle, nobody would know what there is: it is made, and then undone."""
        task = asyncio.create_task(self._maker())
        cancelled = await _end(task, GRACE_SECONDS)
        if cancelled is not None and (task.cancelled() or task.exception()):
            raise cancelled
        made = task.result()
        try:
            if cancelled is not None:
                raise cancelled
            await anyio.lowlevel.checkpoint_if_cancelled()
        except asyncio.CancelledError:
            await whatever_happens(made.leave())
            raise
        return made

    async def __aenter__(self) -> L:
        self._context = self._held()
        return await self._context.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._context is not None
        return await self._context.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[L]:
        made = await self._make()
        try:
            yield made
        finally:
            await whatever_happens(made.leave())
