from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from taskd.errors import Unknown
from taskd.gc import scheduler as module
from taskd.gc.policy import Policy
from taskd.gc.scheduler import Scheduler

MOMENT = 0.05
"""Seconds in which a collection that is due certainly begins, on a machine with time to spare."""


class Collector:
    """Collects nothing, and counts how often."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.held = 0.0001  # with the default policy, the next turn comes 5 ms later
        self.fails = False
        self.expired = False
        self.go_on = anyio.Event()
        self.go_on.set()

    async def collect(self) -> float:
        self.begun += 1
        await self.go_on.wait()
        self.ended += 1
        if self.fails:
            raise Unknown("the disk is full")
        self.expired = False
        return self.held

    def overdue(self) -> bool:
        return self.expired


@asynccontextmanager
async def scheduling(collector: Collector, **policy: float) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(collector, Policy(**policy))  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.run)
        yield scheduler
        group.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


async def test_at_startup() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0.1):
        await anyio.sleep(MOMENT)
        assert collector.ended == 0
        await until(lambda: collector.ended == 1)
        await anyio.sleep(MOMENT)
        assert collector.ended == 1


async def test_nothing_without_a_cause() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0, mutation_threshold=3) as scheduler:
        scheduler.noticed(False)
        scheduler.noticed(False)
        await anyio.sleep(MOMENT)
        assert collector.begun == 0
        scheduler.noticed(False)
        await until(lambda: collector.ended == 1)
        scheduler.noticed(False)
        await anyio.sleep(MOMENT)
        assert collector.begun == 1


async def test_changes_alone_need_be_no_cause() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0, mutation_threshold=0) as scheduler:
        for _ in range(1000):
            scheduler.noticed(False)
        await anyio.sleep(MOMENT)
        assert collector.begun == 0


async def test_a_deletion() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0) as scheduler:
        for count in (1, 2):
            scheduler.noticed(True)
            await until(lambda count=count: collector.ended == count)  # type: ignore[misc]


async def test_deletions_wait_for_their_turn() -> None:
    collector = Collector()
    collector.held = 0.1
    async with scheduling(collector, startup_delay=0, pause_threshold=0.2) as scheduler:
        await scheduler.collect_now()
        for _ in range(100):
            scheduler.noticed(True)
        await anyio.sleep(0.2)  # of 0.4 s
        assert collector.begun == 1
        await until(lambda: collector.ended == 2)
    async with scheduling(collector, startup_delay=30) as scheduler:
        scheduler.noticed(True)
        await anyio.sleep(MOMENT)
        assert collector.begun == 2


async def test_many_deletions_do_not_wait() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=30, deletion_threshold=3) as scheduler:
        for _ in range(2):
            scheduler.noticed(True)
            scheduler.noticed(False)
        await anyio.sleep(MOMENT)
        assert collector.begun == 0
        scheduler.noticed(True)
        await until(lambda: collector.ended == 1)


@pytest.mark.parametrize("synchronous", [True, False])
async def test_what_comes_soon_after_is_collected_too(synchronous: bool) -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0, schedule_delay=0.1) as scheduler:
        before = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(10):
                if synchronous:
                    group.start_soon(scheduler.collect_now)
                else:
                    scheduler.noticed(True)
        await until(lambda: collector.ended == 1)
        assert anyio.current_time() - before >= 0.1
        await anyio.sleep(MOMENT)
        assert collector.begun == 1


async def test_who_asks_waits_for_a_collection_that_begins_later() -> None:
    collector = Collector()
    returned = []

    async def ask(scheduler: Scheduler, name: str) -> None:
        await scheduler.collect_now()
        returned.append((name, collector.ended))

    async with scheduling(collector, startup_delay=0) as scheduler:
        collector.go_on = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, scheduler, "first")
            await until(lambda: collector.begun == 1)
            group.start_soon(ask, scheduler, "second")
            group.start_soon(ask, scheduler, "third")
            await anyio.sleep(MOMENT)
            assert returned == []
            collector.go_on.set()
    assert returned == [("first", 1), ("second", 2), ("third", 2)]


async def test_a_deletion_during_a_collection_counts_for_the_next() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0) as scheduler:
        collector.go_on = anyio.Event()
        scheduler.noticed(True)
        await until(lambda: collector.begun == 1)
        scheduler.noticed(True)
        collector.go_on.set()
        await until(lambda: collector.ended == 2)
        await anyio.sleep(MOMENT)
        assert collector.begun == 2


async def test_who_gives_up_does_not_hinder_others() -> None:
    collector = Collector()
    async with scheduling(collector, startup_delay=0) as scheduler:
        collector.go_on = anyio.Event()
        with anyio.move_on_after(MOMENT) as scope:
            await scheduler.collect_now()
        assert scope.cancelled_caught
        collector.go_on.set()
        await scheduler.collect_now()
        assert collector.ended == 2


async def test_failure(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    collector.fails = True
    async with scheduling(collector, startup_delay=0) as scheduler:
        scheduler._interval = -0.95  # a second less the time to be waited for it here
        with pytest.raises(Unknown, match=r"^gc failed$"):
            await scheduler.collect_now()
        assert "the disk is full" in caplog.text
        collector.fails = False
        await until(lambda: collector.ended == 2)
        await scheduler.collect_now()
        assert collector.ended == 3


async def test_what_expires_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.01)
    collector = Collector()
    async with scheduling(collector, startup_delay=0):
        await anyio.sleep(MOMENT)
        assert collector.begun == 0
        collector.expired = True
        await until(lambda: collector.ended == 1)
        await anyio.sleep(MOMENT)
        assert collector.begun == 1
    collector.expired = True
    async with scheduling(collector, startup_delay=30):
        await anyio.sleep(MOMENT)
        assert collector.begun == 1
