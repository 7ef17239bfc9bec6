from __future__ import annotations

from pathlib import Path

import pytest

from taskd import ttrpc
from taskd.errors import Unknown
from taskd.runtime.client import TaskClient


@pytest.mark.parametrize("answer", [b"\xff", b"\x08", b"\x0a\x05x", b"\x0b"])
async def test_an_answer_that_is_none_is_not_the_clients_fault(folder: Path, answer: bytes) -> None:
    async def call(context: ttrpc.CallContext, payload: bytes) -> bytes:
        return answer

    methods = dict.fromkeys(("Connect", "State", "Pids"), call)
    address = str(folder / "shim")
    async with ttrpc.Server([ttrpc.Service("containerd.task.v2.Task", methods)]) as server:
        await server.start(address)
        connection = await ttrpc.Client.connect(address, timeout=5)
        task = TaskClient(connection, "one", 2)
        for asking in (task.connect(), task.state(""), task.pids()):
            with pytest.raises(Unknown, match="^the shim answers no [A-Z]"):
                await asking
        await connection.aclose()
