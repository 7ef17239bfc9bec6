"""The end of a container, by default."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Any
from taskd.shim import Container, Process
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.service import TaskService

SECONDS = 10.0


class Spawned(Container):
    async def start(self, init: Process) -> int:
        return await self.spawn(init.spec["args"], init)

    async def exec(self, process: Process) -> int:
        return await self.spawn(process.spec["args"], process)


@pytest.fixture
async def service() -> AsyncIterator[TaskService]:
    reaper = Reaper()
    reaper.install()
    service = TaskService(Spawned, "test", reaper, Publisher("/none", "test"))
    yield service
    await service.aclose()
    reaper.uninstall()


def command(script: str) -> bytes:
    return json.dumps({"args": ["/bin/sh", "-c", script]}).encode()


async def test_execs_and_what_is_in_the_background_end_with_it(
    service: TaskService, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    script = f"sleep 1000 & echo $! >{left}; read line <{tmp_path}/go"
    os.mkfifo(tmp_path / "go")
    config = {"process": json.loads(command(script))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    await service.creation.create(api.CreateTaskRequest(id="one", bundle=str(tmp_path)))
    await service.starts.start(api.StartRequest(id="one"))
    spec = Any(value=command("sleep 1000"))
    await service.exec(api.ExecProcessRequest(id="one", exec_id="two", spec=spec))
    await service.starts.start(api.StartRequest(id="one", exec_id="two"))
    (tmp_path / "go").write_text("\n")
    async with asyncio.timeout(SECONDS):
        assert (await service.wait(api.WaitRequest(id="one"))).exit_status == 0
        assert (await service.wait(api.WaitRequest(id="one", exec_id="two"))).exit_status == 137
        while is_running(int(left.read_text())):
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
