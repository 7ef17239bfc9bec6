"""``containerd.runtime.sandbox.v1.Sandbox``, around an author's sandboxes.

It keeps the state of each, ends its containers before it, and lets the process go on as long as
there is one. Sources: containerd's ``plugins/sandbox/controller.go``, which calls it, and
``runtime/v2/runc/pause/sandbox.go`` (v1.7.24), where each call is answered and nothing done.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import suppress
from pathlib import Path

from taskd import mounts
from taskd.errors import AlreadyExists, FailedPrecondition, NotFound, TaskdError
from taskd.proto.containerd.runtime.sandbox import v1 as api
from taskd.proto.containerd.task.v3 import DeleteRequest, KillRequest, ResumeRequest
from taskd.proto.containerd.types import Metric, Platform
from taskd.shim import sandboxed
from taskd.shim.answers import mount_rootfs, unary
from taskd.shim.process import Status
from taskd.shim.reaper import Reaper
from taskd.shim.sandbox import Sandbox, Wanted
from taskd.shim.service import TaskService
from taskd.ttrpc import Service
from taskd.wellknown import from_any, pack, timestamp, to_any

__all__ = ["SandboxService"]

log = logging.getLogger(__name__)

_STOP_SECONDS = 10
"""For a sandbox and its containers to end, if the client does not say how long."""
_ANSWER_SECONDS = 0.1
"""For whoever has asked for the end of the last one to hear of it before the process ends."""


class SandboxService:
    """Serves the sandboxes of one process, whose containers are those of `tasks`."""

    def __init__(
        self, kind: type[Sandbox], namespace: str, reaper: Reaper, tasks: TaskService
    ) -> None:
        self._kind = kind
        self._namespace = namespace
        self._reaper = reaper
        self._tasks = tasks
        self._tenants = tasks.tenants
        self._background = tasks.background

    def service(self) -> Service:
        """What a ttrpc server serves."""
        return Service(
            "containerd.runtime.sandbox.v1.Sandbox",
            {
                "CreateSandbox": unary(api.CreateSandboxRequest, self.create),
                "StartSandbox": unary(api.StartSandboxRequest, self.start),
                "Platform": unary(api.PlatformRequest, self.platform),
                "StopSandbox": unary(api.StopSandboxRequest, self.stop),
                "WaitSandbox": unary(api.WaitSandboxRequest, self.wait),
                "SandboxStatus": unary(api.SandboxStatusRequest, self.status),
                "PingSandbox": unary(api.PingRequest, self.ping),
                "ShutdownSandbox": unary(api.ShutdownSandboxRequest, self.shutdown),
                "SandboxMetrics": unary(api.SandboxMetricsRequest, self.metrics),
            },
        )

    # --- lifecycle ------------------------------------------------------------------------

    async def create(self, request: api.CreateSandboxRequest) -> api.CreateSandboxResponse:
        """A client that gives up does not stop it halfway: what is made then is removed again."""
        if request.sandbox_id in self._tenants.sandboxes:
            raise AlreadyExists(f"sandbox {request.sandbox_id}")
        wanted = Wanted(from_any(request.options), request.netns_path, dict(request.annotations))
        bundle = Path(request.bundle_path)
        sandbox = self._kind(request.sandbox_id, self._namespace, bundle, self._reaper, wanted)
        self._tenants.sandboxes[sandbox.id] = sandbox
        making = self._background.begin(self._create(sandbox, request))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            with suppress(Exception):
                await making
                await self._remove(sandbox)
            raise
        return api.CreateSandboxResponse()

    async def _create(self, sandbox: Sandbox, request: api.CreateSandboxRequest) -> None:
        async with sandbox.lock:
            try:
                sandboxed.note(sandbox.bundle)
                if request.rootfs:
                    mount_rootfs(request.rootfs, sandbox.bundle / "rootfs")
                await sandbox.create()
                self._tenants.admit_sandbox(sandbox)
            except BaseException:
                del self._tenants.sandboxes[sandbox.id]
                mounts.unmount_below(sandbox.bundle / "rootfs")
                raise

    async def start(self, request: api.StartSandboxRequest) -> api.StartSandboxResponse:
        starting = self._start(self._sandbox(request.sandbox_id))
        return await self._background.to_its_end("start of a sandbox", starting)

    async def _start(self, sandbox: Sandbox) -> api.StartSandboxResponse:
        async with sandbox.lock:
            # containerd ends a sandbox that does not start: one that has started, starts.
            if not sandbox.begun:
                if sandbox.ending:
                    raise FailedPrecondition(f"sandbox {sandbox.id} has stopped")
                sandbox.pid = await sandbox.start()
                sandbox.begun = True
                sandbox.noted()
        return api.StartSandboxResponse(pid=sandbox.pid, created_at=timestamp(sandbox.created_at))

    async def stop(self, request: api.StopSandboxRequest) -> api.StopSandboxResponse:
        """One that has stopped stays, as do its containers, until they are removed."""
        sandbox = self._sandbox(request.sandbox_id)
        stopping = self._stop(sandbox, request.timeout_secs or _STOP_SECONDS)
        await self._background.to_its_end("stop of a sandbox", stopping)
        return api.StopSandboxResponse()

    async def _stop(self, sandbox: Sandbox, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        async with sandbox.lock:
            sandbox.ending = True
            sandbox.noted()
            await self._kill_containers(sandbox, seconds)
            if not sandbox.ended.is_set():
                await sandbox.stop(max(until - asyncio.get_running_loop().time(), 0))
                sandbox.exited()

    async def shutdown(self, request: api.ShutdownSandboxRequest) -> api.ShutdownSandboxResponse:
        """The process ends with its last sandbox; containers that are left go with theirs."""
        if request.sandbox_id not in self._tenants.sandboxes:
            # It could not be made; the daemon lets go of the process now.
            self._tenants.end_if_idle()
        removing = self._remove(self._sandbox(request.sandbox_id))
        await self._background.to_its_end("shutdown of a sandbox", removing)
        return api.ShutdownSandboxResponse()

    async def _remove(self, sandbox: Sandbox) -> None:
        await self._stop(sandbox, _STOP_SECONDS)
        async with sandbox.lock:
            await self._delete_containers(sandbox)
            await sandbox.delete()
            mounts.unmount_below(sandbox.bundle / "rootfs")
            self._tenants.remove_sandbox(sandbox)
        # Go's client may take an answer for lost with which the connection ends.
        asyncio.get_running_loop().call_later(_ANSWER_SECONDS, self._tenants.end_if_idle)

    async def _kill_containers(self, sandbox: Sandbox, seconds: float) -> None:
        """They can be deleted when this returns; what has not ended in time is left to its end."""
        within = self._tenants.within(sandbox)
        for task in within:
            with suppress(TaskdError):  # it may have ended, or not have begun
                if task.init.status is Status.PAUSED:
                    await self._tasks.resume(ResumeRequest(id=task.container.id))
                killing = KillRequest(id=task.container.id, signal=signal.SIGKILL, all=True)
                await self._tasks.kill(killing)
        ends = [self._background.begin(each.init.ended.wait()) for each in within if each.init.pid]
        if ends:
            await asyncio.wait(ends, timeout=seconds)

    async def _delete_containers(self, sandbox: Sandbox) -> None:
        for task in self._tenants.within(sandbox):
            try:
                await self._tasks.creation.delete(DeleteRequest(id=task.container.id))
            except TaskdError as exc:
                log.error("deleting %s with its sandbox: %s", task.container.id, exc)

    # --- questions ------------------------------------------------------------------------

    async def wait(self, request: api.WaitSandboxRequest) -> api.WaitSandboxResponse:
        sandbox = self._sandbox(request.sandbox_id)
        await sandbox.ended.wait()
        return api.WaitSandboxResponse(
            exit_status=sandbox.exit_status, exited_at=timestamp(sandbox.exited_at)
        )

    async def status(self, request: api.SandboxStatusRequest) -> api.SandboxStatusResponse:
        """The state is in the words of Kubernetes' CRI, as containerd's clients know them."""
        sandbox = self._sandbox(request.sandbox_id)
        ready = sandbox.begun and not sandbox.ended.is_set()
        return api.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            pid=sandbox.pid,
            state="SANDBOX_READY" if ready else "SANDBOX_NOTREADY",
            info=dict(sandbox.info) if request.verbose else {},
            created_at=timestamp(sandbox.created_at),
            exited_at=timestamp(sandbox.exited_at) if sandbox.ended.is_set() else None,
        )

    async def platform(self, request: api.PlatformRequest) -> api.PlatformResponse:
        system, architecture = self._sandbox(request.sandbox_id).platform
        return api.PlatformResponse(platform=Platform(os=system, architecture=architecture))

    async def ping(self, request: api.PingRequest) -> api.PingResponse:
        self._sandbox(request.sandbox_id)
        return api.PingResponse()

    async def metrics(self, request: api.SandboxMetricsRequest) -> api.SandboxMetricsResponse:
        sandbox = self._sandbox(request.sandbox_id)
        found = await sandbox.stats()
        if found is None:
            return api.SandboxMetricsResponse()
        metric = Metric(
            timestamp=timestamp(time.time_ns()), id=sandbox.id, data=to_any(pack(found))
        )
        return api.SandboxMetricsResponse(metrics=metric)

    # --- the rest -------------------------------------------------------------------------

    def _sandbox(self, id: str) -> Sandbox:  # noqa: A002
        try:
            return self._tenants.sandboxes[id]
        except KeyError:
            raise NotFound(f"sandbox {id}") from None
