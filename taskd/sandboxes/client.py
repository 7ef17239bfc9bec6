"""The shim's sandbox service, in the domain's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import betterproto2

from taskd.codec import encode
from taskd.proto.containerd.runtime.sandbox import v1 as api
from taskd.proto.google.protobuf import Timestamp
from taskd.runtime.client import mount_messages, read_answer, time_left
from taskd.runtime.connection import Connection
from taskd.runtime.types import Exit, Key
from taskd.types import Mount, TypedValue
from taskd.wellknown import from_any, nanoseconds, to_any

__all__ = ["SandboxClient", "State", "Usage", "Wanted"]

_SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
_Response = TypeVar("_Response", bound=betterproto2.Message)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client may say of a sandbox besides its record."""

    options: TypedValue | None = None
    rootfs: tuple[Mount, ...] = ()
    netns: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """What a shim tells of a sandbox. Times are nanoseconds since the epoch, 0 if it leaves them
    out.
    """

    id: str = ""
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    exited_at: int = 0
    extra: TypedValue | None = None


class Usage(NamedTuple):
    id: str
    collected_at: int
    data: TypedValue | None


class SandboxClient:
    """One sandbox of one shim. Every call raises what those of `TaskClient` do."""

    def __init__(self, connection: Connection, key: Key) -> None:
        self._connection = connection
        self._id = key.id
        self._metadata = {"containerd-namespace-ttrpc": [key.namespace]}

    async def create(self, bundle: str, wanted: Wanted) -> None:
        request = api.CreateSandboxRequest(
            sandbox_id=self._id,
            bundle_path=bundle,
            rootfs=mount_messages(wanted.rootfs),
            options=to_any(wanted.options),
            netns_path=wanted.netns,
            annotations=dict(wanted.annotations),
        )
        await self._call("CreateSandbox", request, api.CreateSandboxResponse)

    async def start(self) -> State:
        """Its pid, and when it was created."""
        request = api.StartSandboxRequest(sandbox_id=self._id)
        answer = await self._call("StartSandbox", request, api.StartSandboxResponse)
        return State(self._id, answer.pid, created_at=_time(answer.created_at))

    async def platform(self) -> tuple[str, str, str]:
        """Operating system, architecture and its variant, in Go's words."""
        request = api.PlatformRequest(sandbox_id=self._id)
        found = (await self._call("Platform", request, api.PlatformResponse)).platform
        return ("", "", "") if found is None else (found.os, found.architecture, found.variant)

    async def stop(self, seconds: int) -> None:
        """0 leaves the time that it has to the shim."""
        request = api.StopSandboxRequest(sandbox_id=self._id, timeout_secs=seconds)
        await self._call("StopSandbox", request, api.StopSandboxResponse)

    async def wait(self) -> Exit:
        """However long; the exit's pid is not known here (0)."""
        request = api.WaitSandboxRequest(sandbox_id=self._id)
        answer = await self._call("WaitSandbox", request, api.WaitSandboxResponse)
        return Exit(0, answer.exit_status, _time(answer.exited_at))

    async def status(self, *, verbose: bool) -> State:
        request = api.SandboxStatusRequest(sandbox_id=self._id, verbose=verbose)
        answer = await self._call("SandboxStatus", request, api.SandboxStatusResponse)
        return State(
            answer.sandbox_id,
            answer.pid,
            answer.state,
            answer.info,
            _time(answer.created_at),
            _time(answer.exited_at),
            from_any(answer.extra),
        )

    async def ping(self, *, timeout: float) -> None:
        request = api.PingRequest(sandbox_id=self._id)
        await self._call("PingSandbox", request, api.PingResponse, timeout=timeout)

    async def metrics(self) -> Usage | None:
        request = api.SandboxMetricsRequest(sandbox_id=self._id)
        found = (await self._call("SandboxMetrics", request, api.SandboxMetricsResponse)).metrics
        if found is None:
            return None
        return Usage(found.id, _time(found.timestamp), from_any(found.data))

    async def shutdown(self) -> None:
        request = api.ShutdownSandboxRequest(sandbox_id=self._id)
        await self._call("ShutdownSandbox", request, api.ShutdownSandboxResponse)

    async def _call(
        self,
        method: str,
        request: betterproto2.Message,
        response_type: type[_Response],
        *,
        timeout: float | None = None,
    ) -> _Response:
        answer = await self._connection.call(
            _SERVICE,
            method,
            encode(request),
            timeout=time_left() if timeout is None else timeout,
            metadata=self._metadata,
        )
        return read_answer(response_type, answer)


def _time(message: Timestamp | None) -> int:
    return 0 if message is None else nanoseconds(message)
