"""Removals while the daemon's records cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from taskd.errors import NotFound, Unavailable
from taskd.events import Bus, Journal
from taskd.labels import REMOVE
from taskd.metadata import Container
from taskd.restarts import Removals, removals


class Records:
    """Has one container, which is to go, and fails at first wherever it is asked."""

    def __init__(self) -> None:
        self.there = [Container("one", labels={REMOVE: "one"})]
        self.failures = {"labelled", "get"}

    def _fail_once(self, name: str) -> None:
        if name in self.failures:
            self.failures.remove(name)
            raise Unavailable("the disk is away")

    def labelled(self, key: str) -> list[tuple[str, Container]]:
        self._fail_once("labelled")
        return [("space", each) for each in self.there if key in each.labels]

    def get(self, namespace: str, id: str) -> Container:  # noqa: A002
        self._fail_once("get")
        for each in self.there:
            return each
        raise NotFound(id)

    async def delete(self, namespace: str, id: str) -> None:  # noqa: A002
        self.there.clear()


class NoTasks:
    async def find(self, namespace: str, id: str) -> None:  # noqa: A002
        return None

    async def delete(self, namespace: str, id: str) -> None:  # noqa: A002
        raise NotFound(id)


async def test_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "RETRY_SECONDS", 0.01)
    records: Any = Records()
    tasks: Any = NoTasks()
    with Journal(tmp_path / "events.db") as journal:
        async with Removals(records, tasks, {}, Bus(journal)).running():
            with anyio.fail_after(60):
                while records.there:
                    await anyio.sleep(0.01)
    assert not records.failures
