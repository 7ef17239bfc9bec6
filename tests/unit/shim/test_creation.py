"""Create, several times at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskd.errors import AlreadyExists
from taskd.proto.containerd.task.v3 import CreateTaskRequest, StateRequest
from taskd.shim import Container, Process
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.service import TaskService


class Slow(Container):
    """Takes its time to be created, and notes down who is told to undo that."""

    abandoned = 0

    async def create(self, init: Process) -> int:
        await asyncio.sleep(0.05)
        return 0

    async def abandon(self) -> None:
        type(self).abandoned += 1


async def test_of_one_id_the_first_succeeds_and_the_others_touch_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    service = TaskService(Slow, "test", Reaper(), Publisher("/none", "test"))
    request = CreateTaskRequest(id="one", bundle=str(tmp_path))
    first, *others = await asyncio.gather(
        *(service.creation.create(request) for _ in range(3)), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert [type(each) for each in others] == [AlreadyExists, AlreadyExists]
    assert Slow.abandoned == 0
    assert (await service.state(StateRequest(id="one"))).status == 1
    with pytest.raises(AlreadyExists, match="container one: already exists"):
        await service.creation.create(request)
    await service.aclose()
