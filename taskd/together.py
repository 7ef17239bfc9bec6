"""Several things at once, of which one that fails ends the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from taskd.errors import TaskdError

__all__ = ["together"]


@asynccontextmanager
async def together() -> AsyncIterator[TaskGroup]:
    """A task group that raises the error of the task that failed, and no group of errors.

    Of several errors it is one of the domain's, if any is.
    """
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as failed:
        errors = list(_leaves(failed))
        raise next((exc for exc in errors if isinstance(exc, TaskdError)), errors[0]) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
