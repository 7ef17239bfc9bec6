"""All that goes on in this process, as stacks, for whoever wonders why it stands still.

containerd, too, writes its stacks to the log on SIGUSR1.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
from collections import Counter
from collections.abc import Iterator
from signal import Signals
from typing import Any

__all__ = ["show_on", "stacks"]

log = logging.getLogger(__name__)


def show_on(number: Signals, descriptor: int) -> None:
    """From now on show the stacks when the signal comes; belongs to the event loop that runs.

    Those of threads are written to `descriptor` at once, even if the event loop stands still. Those
    of tasks are written to the log by the event loop.
    """
    asyncio.get_running_loop().add_signal_handler(number, _log)
    faulthandler.register(number, file=descriptor, all_threads=True, chain=True)


def _log() -> None:
    for line in stacks(asyncio.all_tasks()):
        log.warning("%s", line)


def stacks(tasks: set[asyncio.Task[Any]]) -> Iterator[str]:
    """Lines that show where each task waits, outermost first; those that wait alike together."""
    alike = Counter(tuple(_awaited(task.get_coro())) for task in tasks)
    yield f"stacks of {len(tasks)} tasks:"
    for stack, count in alike.most_common():
        yield f"{count} tasks:" if count > 1 else "1 task:"
        yield from (f"    {each}" for each in stack)


def _awaited(coroutine: Any) -> Iterator[str]:
    """The chain of what awaits what, down to what is no code of Python's."""
    while coroutine is not None:
        for prefix, below in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            if hasattr(coroutine, f"{prefix}_code"):
                code, frame = (
                    getattr(coroutine, f"{prefix}_code"),
                    getattr(coroutine, f"{prefix}_frame"),
                )
                line = frame.f_lineno if frame else code.co_firstlineno
                yield f"{code.co_filename}:{line} {code.co_qualname}"
                coroutine = getattr(coroutine, f"{prefix}_{below}")
                break
        else:
            yield f"<{type(coroutine).__qualname__}>"
            return
