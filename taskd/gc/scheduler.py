"""When to collect garbage. Source: containerd's ``gc/scheduler/scheduler.go``."""

from __future__ import annotations

import logging
import math
from typing import Protocol

import anyio

from taskd.errors import TaskdError, Unknown
from taskd.gc.policy import Policy

__all__ = ["LOOK", "Scheduler"]

_log = logging.getLogger(__name__)

LOOK = 60.0
"""Seconds between two looks for what has expired, while nothing else gives cause to collect."""


class _Collector(Protocol):
    async def collect(self) -> float: ...

    def overdue(self) -> bool: ...


class _Waiter:
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.failed = False


class Scheduler:
    """Has `collector` collect when the database has changed enough, and when it is asked to.

    After a collection, the next one has its turn when the mean time that collections hold up
    writers has become as small a share of all time as the policy wants it to be.
    """

    def __init__(self, collector: _Collector, policy: Policy) -> None:
        """Startup is now: must be called where anyio's clock runs."""
        self._collector = collector
        self._policy = policy
        self._earliest = anyio.current_time() + policy.startup_delay
        """The next turn."""
        self._due = self._earliest if policy.startup_delay > 0 else math.inf
        """When the next collection is to begin; infinite without a cause for one."""
        self._sooner = anyio.Event()  # `_due` has become so
        self._deletions = 0
        self._mutations = 0
        self._waiters: list[_Waiter] = []
        self._interval = 1.0
        self._collections = 0
        self._held = 0.0  # by all collections together

    def noticed(self, deletion: bool) -> None:
        """Something has been committed; `deletion` if less may be referred to than before."""
        self._mutations += 1
        self._deletions += deletion
        self._reschedule()

    async def collect_now(self) -> None:
        """Wait for the end of a collection that begins after this call. Raises `Unknown`."""
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._reschedule()
        await waiter.done.wait()
        if waiter.failed:
            raise Unknown("gc failed")

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            await self._until_due()
            await self._collect()

    async def _until_due(self) -> None:
        while (left := self._due - anyio.current_time()) > 0:
            self._sooner = anyio.Event()
            with anyio.move_on_after(min(left, LOOK)):
                await self._sooner.wait()
                continue
            if self._due == math.inf and self._overdue():
                return

    def _overdue(self) -> bool:
        try:
            return self._collector.overdue()
        except TaskdError as error:
            _log.warning("what has expired is not known: %s", error)
            return False

    async def _collect(self) -> None:
        # What comes from here on the collection may have missed: it counts for the next one.
        waiters, self._waiters = self._waiters, []
        self._deletions = self._mutations = 0
        failed = False
        try:
            self._learn(await self._collector.collect())
        except (OSError, TaskdError) as error:
            _log.error("garbage was not collected: %s", error)
            failed = True
        self._earliest = anyio.current_time() + self._interval + failed
        self._due = self._earliest if failed else math.inf
        self._reschedule()
        for waiter in waiters:
            waiter.failed = failed
            waiter.done.set()

    def _learn(self, held: float) -> None:
        self._collections += 1
        self._held += held
        share = self._policy.pause_threshold
        if share > 0:
            mean = self._held / self._collections
            self._interval = mean / share - mean
        _log.debug("garbage was collected, and held up writers for %.1f ms", held * 1000)

    def _reschedule(self) -> None:
        policy = self._policy
        at = anyio.current_time() + policy.schedule_delay
        if not self._waiters and not 0 < policy.deletion_threshold <= self._deletions:
            if not self._deletions and not 0 < policy.mutation_threshold <= self._mutations:
                return
            at = max(at, self._earliest)
        if at < self._due:
            self._due = at
            self._sooner.set()
