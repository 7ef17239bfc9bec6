"""The descriptor store, at its limit."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from taskd.runtime.store import DescriptorStore
from taskd.runtime.types import Key
from taskd.slots import receive, send

LIMIT = 4


class Shim:
    """The other side of it."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.connect(str(path))
        send(self.connection, {"namespace": "ns", "pid": 1, "version": "1"})

    def keep(self, container: str, *slots: str, drop: tuple[str, ...] = ()) -> None:
        descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in slots]
        message = {"container": container, "process": "", "anew": False}
        send(self.connection, {**message, "put": list(slots), "drop": list(drop)}, descriptors)
        for each in descriptors:
            os.close(each)

    async def kept(self, *containers: str) -> dict[str, set[str]]:
        send(self.connection, {"recover": list(containers)})
        found: dict[str, set[str]] = {}
        while True:
            message, descriptors = await anyio.to_thread.run_sync(receive, self.connection)
            for each in descriptors:
                os.close(each)
            if message.get("done"):
                return found
            found[message["container"]] = set(message["put"])


@asynccontextmanager
async def keeping(folder: Path) -> AsyncIterator[tuple[Shim, DescriptorStore]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "store"))
        listener.listen()
        async with anyio.create_task_group() as group:
            store = DescriptorStore(group, LIMIT)
            group.start_soon(store.serve, listener)
            shim = Shim(folder / "store")
            yield shim, store
            shim.connection.close()
            group.cancel_scope.cancel()
    store.close()


async def test_what_there_is_no_room_for_is_not_kept_by_halves(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever goes on with it would take a part for the whole; others' are kept as they are."""
    async with keeping(folder) as (one, store):
        await fill(one, store)
    assert caplog.text.count("full; ns/second may end with its shim") == 1


async def fill(one: Shim, store: DescriptorStore) -> None:
    one.keep("first", "pid", "stdout")
    one.keep("second", "pid")
    one.keep("second", "stdin", "stdout")
    # There would be room for this alone.
    one.keep("second", "stderr")
    assert await one.kept("first", "second") == {"first": {"pid", "stdout"}}
    one.keep("first", drop=("stdout",))
    one.keep("third", "pid", "stdin", "stdout")
    assert await one.kept("first", "third") == {
        "first": {"pid"},
        "third": {"pid", "stdin", "stdout"},
    }
    # A container of its name has as much as any.
    for name in ("second", "third"):
        store.forget(Key("ns", name))
    one.keep("second", "pid", "stdin", "stdout")
    assert set(await one.kept("second")) == {"second"}
    store.forget(Key("ns", "second"))
    assert store._count == 1
