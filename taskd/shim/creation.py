"""Create and Delete: how containers come and go, and how what has come halfway goes again."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taskd.errors import FailedPrecondition, Unknown, words
from taskd.proto.containerd.events import TaskDelete
from taskd.proto.containerd.task import v3 as api
from taskd.shim import leftovers, sandboxed
from taskd.shim.answers import mount_rootfs
from taskd.shim.background import Background
from taskd.shim.container import Container
from taskd.shim.custody import Custody
from taskd.shim.ends import Ends
from taskd.shim.process import Process, Status
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.stdio import Stdio
from taskd.shim.task import Task
from taskd.shim.tenants import Tenants
from taskd.wellknown import from_any, timestamp

__all__ = ["Creation"]

log = logging.getLogger(__name__)

_END_SECONDS = 2.0
"""For the end of a process that was never started to be told, once its container is deleted."""


@dataclass(frozen=True)
class Creation:
    """Makes containers of one kind, and deletes them."""

    kind: type[Container]
    namespace: str
    reaper: Reaper
    tenants: Tenants
    custody: Custody
    ends: Ends
    background: Background
    publisher: Publisher

    # --- create ---------------------------------------------------------------------------

    async def create(self, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        """A client that gives up does not stop it halfway: what is made then is removed again."""
        with self.tenants.making(request.id):
            making = self.background.begin(self._create(request))
            try:
                task = await asyncio.shield(making)
            except asyncio.CancelledError:
                try:
                    task = await making
                    await self._tell_deleted(task.init, await self._remove(task))
                except Exception as exc:
                    text = "undoing the creation of %s, which was given up: %s"
                    log.warning(text, request.id, exc)
                raise
        return api.CreateTaskResponse(pid=task.init.pid)

    async def _create(self, request: api.CreateTaskRequest) -> Task:
        task = self._task(request)
        container, init = task.container, task.init
        try:
            if task.rootfs is not None:
                mount_rootfs(request.rootfs, task.rootfs)
            with self.reaper.starting():
                await task.open(init)
                init.pid = await container.create(init)
                if init.pid:
                    leftovers.note_init(container.bundle, init.pid)
                if (sandbox := container.sandbox) is not None and sandbox.ending:
                    raise FailedPrecondition(f"sandbox {sandbox.id} has stopped")
                if init.pid:
                    self.custody.born(init)
                self.tenants.admit(task)
                self.publisher.publish(task.created(request.rootfs))
                if init.pid:
                    self.ends.follow(task, init)
            await self.custody.settled()
        except BaseException:
            with suppress(Exception):
                await container.abandon()
            await init.release(0)
            task.unmount()
            raise
        return task

    def _task(self, request: api.CreateTaskRequest) -> Task:
        bundle = Path(request.bundle)
        options = from_any(request.options)
        container = self.kind(
            request.id,
            self.namespace,
            bundle,
            self.reaper,
            options if options is not None and (options.type_url or options.value) else None,
            request.checkpoint,
        )
        if (sandbox := self.tenants.sandboxes.get(sandboxed.of(bundle))) is not None:
            container.sandbox = sandbox
            sandboxed.note_container(sandbox.bundle, bundle)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        container.init = Process("", container.spec.get("process") or {}, stdio)
        return Task(container, bundle / "rootfs" if request.rootfs else None)

    # --- delete ---------------------------------------------------------------------------

    async def delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        """A container that is being made is deleted once it is there, as by containerd's shim.

        That is how a daemon tells that nobody wants it any more: on a connection that goes on, no
        call can be taken back. It need not wait for it.
        """
        made = self.tenants.made(request.id)
        if made is None or request.exec_id:
            return await self._delete(request)
        return await self.background.to_its_end("delete", self._delete_made(made, request))

    async def _delete_made(
        self, made: asyncio.Event, request: api.DeleteRequest
    ) -> api.DeleteResponse:
        await made.wait()
        try:
            return await self._delete(request)
        finally:
            self.tenants.stop_if_idle()

    async def _delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        task = self.tenants.task(request.id)
        process = task.process(request.exec_id)
        async with process.lock:
            process.refuse("delete", Status.RUNNING, Status.PAUSED)
            deleted = None
            if process is task.init:
                deleted = await self._remove(task)
            else:
                await process.release()
                task.execs.pop(process.id, None)
            process.deleted()
            answer = api.DeleteResponse(
                pid=process.pid,
                exit_status=process.exit_status,
                exited_at=timestamp(process.exited_at),
            )
        if deleted is not None:
            await self._tell_deleted(process, deleted)
        return answer

    async def _remove(self, task: Task) -> TaskDelete:
        container = task.container
        try:
            await container.delete()
        except Exception as exc:
            if container.bundle.exists():
                raise
            # The daemon has cleaned up after it, and nobody will ask again.
            log.warning("deleting %s, whose bundle is gone: %s", container.id, exc)
        await task.init.release()
        try:
            task.unmount()
        except OSError as exc:
            raise Unknown(f"failed rootfs umount: {words(exc)}") from exc
        await asyncio.gather(*(process.release() for process in task.execs.values()))
        self.tenants.remove(task)
        return task.deleted()

    async def _tell_deleted(self, init: Process, deleted: TaskDelete) -> None:
        """One that was never started ends by being deleted: that is told first."""
        if init.pid:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await init.ended.wait()
        self.publisher.publish(deleted)
