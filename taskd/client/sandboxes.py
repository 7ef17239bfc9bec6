"""Sandboxes: what several containers are in. containerd has them since 2.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from taskd.client.channel import Channel, naming
from taskd.client.cleanup import Made, whatever_happens
from taskd.client.process import Exit
from taskd.client.spec import packed
from taskd.errors import NotFound, TaskdError
from taskd.proto.containerd.services.sandbox.v1 import (
    ControllerCreateRequest,
    ControllerShutdownRequest,
    ControllerStartRequest,
    ControllerStatusRequest,
    ControllerStatusResponse,
    ControllerStopRequest,
    ControllerStub,
    ControllerWaitRequest,
    StoreCreateRequest,
    StoreDeleteRequest,
    StoreGetRequest,
    StoreListRequest,
    StoreStub,
)
from taskd.proto.containerd.types import Sandbox as Record
from taskd.proto.containerd.types import SandboxRuntime
from taskd.wellknown import nanoseconds

__all__ = ["Sandbox", "Sandboxes"]

SHIM = "shim"
"""The controller that has a shim for each."""


class Sandbox:
    """One of them; ``client.run(…, sandbox=sandbox.id)`` makes containers in it."""

    def __init__(self, channel: Channel, record: Record) -> None:
        self.record = record
        self.pid = 0
        self._channel = channel
        self._store = StoreStub(channel)
        self._controller = ControllerStub(channel)
        self._which: dict[str, Any] = {
            "sandbox_id": record.sandbox_id,
            "sandboxer": record.sandboxer,
        }

    def __repr__(self) -> str:
        return f"<Sandbox {self.id}>"

    @property
    def id(self) -> str:
        return self.record.sandbox_id

    async def start(self) -> int:
        """Its pid; 0 if its runtime has none."""
        with self._naming():
            self.pid = (await self._controller.start(ControllerStartRequest(**self._which))).pid
        return self.pid

    async def status(self) -> ControllerStatusResponse:
        """What its shim tells of it."""
        with self._naming():
            request = ControllerStatusRequest(**self._which)
            found: ControllerStatusResponse = await self._controller.status(request)
        return found

    async def wait(self) -> Exit:
        """Wait until it ends."""

        async def wait() -> Exit:
            found = await self._controller.wait(ControllerWaitRequest(**self._which))
            return Exit(found.exit_status, nanoseconds(found.exited_at))

        with self._naming():
            return await self._channel.persist(wait)

    async def stop(self, grace: float = 10.0) -> None:
        """End it, and all that is in it."""
        with self._naming():
            request = ControllerStopRequest(**self._which, timeout_secs=round(grace))
            await self._controller.stop(request)

    async def delete(self) -> None:
        """Forget it, once it has ended."""
        with self._naming():
            await self._controller.shutdown(ControllerShutdownRequest(**self._which))
            await self._store.delete(StoreDeleteRequest(sandbox_id=self.id))

    async def forget(self) -> None:
        """End and forget what there is of it."""
        with suppress(TaskdError):  # it has not come so far, or has gone
            await self.stop()
        with suppress(TaskdError):
            await self._controller.shutdown(ControllerShutdownRequest(**self._which))
        with suppress(NotFound):
            await self._store.delete(StoreDeleteRequest(sandbox_id=self.id))

    async def leave(self) -> None:
        """The same, for `Made`."""
        await self.forget()

    def _naming(self) -> Any:
        return naming("sandbox", self.id)


class Sandboxes:
    """Those of a namespace. Raises `Unimplemented` where the daemon has none."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._store = StoreStub(channel)
        self._controller = ControllerStub(channel)

    def create(
        self,
        id: str,  # noqa: A002
        runtime: str,
        *,
        spec: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        sandboxer: str = SHIM,
        start: bool = True,
    ) -> Made[Sandbox]:
        """One that has been started: ``async with`` ends it, ``await`` lets it stay."""
        record = Record(
            sandbox_id=id,
            runtime=SandboxRuntime(name=runtime),
            labels=dict(labels or {}),
            sandboxer=sandboxer,
            spec=packed("Spec", spec or {}),
        )

        async def make() -> Sandbox:
            with naming("sandbox", id):
                await self._store.create(StoreCreateRequest(sandbox=record))
            made = Sandbox(self._channel, record)
            try:
                with naming("sandbox", id):
                    await self._controller.create(
                        ControllerCreateRequest(sandbox_id=id, sandbox=record, sandboxer=sandboxer)
                    )
                if start:
                    await made.start()
            except BaseException:
                await whatever_happens(made.forget())
                raise
            return made

        return Made(make)

    async def get(self, id: str) -> Sandbox:  # noqa: A002
        """The one of that name. Raises `NotFound`."""
        with naming("sandbox", id):
            found = (await self._store.get(StoreGetRequest(sandbox_id=id))).sandbox
        return Sandbox(self._channel, found)

    async def list(self, *filters: str) -> Sequence[Sandbox]:
        found = (await self._store.list(StoreListRequest(filters=[*filters]))).list
        return [Sandbox(self._channel, each) for each in found]
