"""Work of a shim that goes on whoever has asked for it, and has gone since."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

__all__ = ["Background"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Background:
    """What goes on for as long as a shim serves."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def to_its_end(
        self, doing: str, work: Coroutine[Any, Any, _Result], seconds: float | None = None
    ) -> _Result:
        """Whoever asks may go away: it is done all the same, and the log has what fails then.

        It has `seconds` from then on.
        """
        task = self.begin(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(partial(_log_failure, doing))
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, task.cancel)
            raise

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _log_failure(doing: str, work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (exc := work.exception()) is not None:
        log.warning("a %s that nobody waited for: %s", doing, exc)
