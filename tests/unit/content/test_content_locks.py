from __future__ import annotations

import anyio
import pytest

from taskd.content.locks import Locks
from taskd.errors import Unavailable


async def test_one_at_a_time() -> None:
    locks = Locks()
    await locks.acquire("a")
    await locks.acquire("b")
    with pytest.raises(Unavailable, match="ref a locked for "):
        await locks.acquire("a")
    locks.release("a")
    await locks.acquire("a")
    assert locks.held() == {"a", "b"}


async def test_who_is_leaving_is_waited_for() -> None:
    locks = Locks()
    await locks.acquire("a")
    locks.leave("a")
    outcomes: list[str] = []

    async def come() -> None:
        try:
            await locks.acquire("a")
        except Unavailable:
            outcomes.append("refused")
        else:
            outcomes.append("held")

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(come)
        await anyio.wait_all_tasks_blocked()
        assert outcomes == []
        locks.release("a")
    assert sorted(outcomes) == ["held", "refused"]
