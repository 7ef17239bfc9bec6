"""The task service of a shim, versions 2 and 3, around an author's containers.

It keeps the state of each process and says no, in containerd's words, to what cannot be done in it;
it tells the daemon what happens, and in the right order: a process's start before its exit, the
init process's exit after those of all execs. Sources: containerd's ``pkg/process`` (init_state.go,
exec_state.go) and ``runtime/v2/runc/task/service.go``, v1.7.24.
"""

from __future__ import annotations

import json
import os
from typing import Any

from taskd.errors import AlreadyExists, FailedPrecondition, NotFound, Unimplemented, Unknown
from taskd.proto.containerd import events
from taskd.proto.containerd.runc.v1 import ProcessDetails
from taskd.proto.containerd.task import v3 as api
from taskd.proto.containerd.v1.types import ProcessInfo
from taskd.proto.containerd.v1.types import Status as ProtoStatus
from taskd.proto.google.protobuf import Empty
from taskd.shim.answers import unary
from taskd.shim.background import Background
from taskd.shim.container import Container
from taskd.shim.creation import Creation
from taskd.shim.custody import Custody
from taskd.shim.document import document
from taskd.shim.ends import Ends
from taskd.shim.process import Process, Status
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.starts import Starts
from taskd.shim.stdio import Stdio
from taskd.shim.task import Task
from taskd.shim.tenants import Tenants
from taskd.ttrpc import Handler, Service
from taskd.wellknown import from_any, pack, timestamp, to_any

__all__ = ["TaskService"]

_NAMES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class TaskService:
    """Serves the containers of one namespace."""

    def __init__(
        self,
        kind: type[Container],
        namespace: str,
        reaper: Reaper,
        publisher: Publisher,
        custody: Custody | None = None,
    ) -> None:
        self._publish = publisher.publish
        self._custody = custody = custody or Custody()
        self.background = background = Background()
        self.tenants = tenants = Tenants(custody)
        self._ends = ends = Ends(background, publisher)
        self.starts = Starts(tenants, custody, ends, background, publisher)
        self.creation = Creation(
            kind, namespace, reaper, tenants, custody, ends, background, publisher
        )

    def services(self) -> list[Service]:
        """What a ttrpc server serves: both versions, whose messages are the same."""
        methods: dict[str, Handler] = {
            "Create": unary(api.CreateTaskRequest, self.creation.create),
            "Start": unary(api.StartRequest, self.starts.start),
            "Delete": unary(api.DeleteRequest, self.creation.delete),
            "Exec": unary(api.ExecProcessRequest, self.exec),
            "ResizePty": unary(api.ResizePtyRequest, self.resize_pty),
            "State": unary(api.StateRequest, self.state),
            "Pause": unary(api.PauseRequest, self.pause),
            "Resume": unary(api.ResumeRequest, self.resume),
            "Kill": unary(api.KillRequest, self.kill),
            "Pids": unary(api.PidsRequest, self.pids),
            "CloseIO": unary(api.CloseIoRequest, self.close_io),
            "Checkpoint": unary(api.CheckpointTaskRequest, self.checkpoint),
            "Update": unary(api.UpdateTaskRequest, self.update),
            "Wait": unary(api.WaitRequest, self.wait),
            "Stats": unary(api.StatsRequest, self.stats),
            "Connect": unary(api.ConnectRequest, self.connect),
            "Shutdown": unary(api.ShutdownRequest, self.shutdown),
        }
        return [Service(name, methods) for name in _NAMES]

    # --- processes ------------------------------------------------------------------------

    async def exec(self, request: api.ExecProcessRequest) -> Empty:
        task = self.tenants.task(request.id)
        if type(task.container).exec is Container.exec:
            raise Unimplemented("exec")
        if request.exec_id in task.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        if task.init.status in (Status.PAUSED, Status.STOPPED, Status.DELETED) or (
            # A checkpoint is restored by Start: there is nothing yet to run it in.
            task.init.status is Status.CREATED and task.container.checkpoint
        ):
            raise Unknown(f"cannot exec in a {task.init.status.name.lower()} state")
        text = request.spec.value if request.spec else b""
        spec = document(text, "the process's specification")
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        spec["terminal"] = request.terminal
        task.execs[request.exec_id] = process = Process(request.exec_id, spec, stdio)
        self._custody.add(task, process)
        self._publish(events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    async def wait(self, request: api.WaitRequest) -> api.WaitResponse:
        process = self.tenants.task(request.id).process(request.exec_id)
        await process.ended.wait()
        return api.WaitResponse(
            exit_status=process.exit_status, exited_at=timestamp(process.exited_at)
        )

    async def kill(self, request: api.KillRequest) -> Empty:
        task = self.tenants.task(request.id)
        process = task.process(request.exec_id)
        async with process.lock:
            if process.status is Status.DELETED:
                raise NotFound("cannot kill a deleted process")
            if not process.pid:
                raise FailedPrecondition("process not created")
            if process.status is Status.STOPPED:
                if request.all and process is task.init:
                    return Empty()  # all the rest has been ended with it
                raise NotFound("process already finished")
            await task.container.kill(process, request.signal, request.all)
        return Empty()

    # --- what is done to the container as a whole -----------------------------------------

    async def pause(self, request: api.PauseRequest) -> Empty:
        task = self.tenants.task(request.id)
        init = task.init
        async with init.lock:
            if init.status is Status.CREATED:
                raise Unknown("cannot pause task in created state")
            init.refuse("pause", Status.PAUSED, Status.STOPPED, of="container")
            init.pausing()
            try:
                await task.container.pause()
            except BaseException:
                init.begun()
                raise
            init.paused()
            self._publish(events.TaskPaused(container_id=request.id))
        return Empty()

    async def resume(self, request: api.ResumeRequest) -> Empty:
        task = self.tenants.task(request.id)
        init = task.init
        async with init.lock:
            if init.status is Status.CREATED:
                raise Unknown("cannot resume task in created state")
            init.refuse("resume", Status.RUNNING)
            init.refuse("resume", Status.STOPPED, of="container")
            with init.changing("resume"):
                await task.container.resume()
                init.begun()
            self._publish(events.TaskResumed(container_id=request.id))
        return Empty()

    async def update(self, request: api.UpdateTaskRequest) -> Empty:
        task = self.tenants.task(request.id)
        async with task.init.lock:
            task.init.refuse("update", Status.STOPPED, of="container")
            try:
                resources = json.loads(request.resources.value if request.resources else b"")
            except (ValueError, RecursionError) as exc:
                raise Unknown(f"the resources are not JSON: {exc}") from exc
            if not isinstance(resources, dict | None):
                raise Unknown(f"the resources are no JSON object: {type(resources).__name__}")
            await task.container.update(_without_nulls(resources or {}), request.annotations)
        return Empty()

    async def checkpoint(self, request: api.CheckpointTaskRequest) -> Empty:
        task = self.tenants.task(request.id)
        async with task.init.lock:
            if task.init.status is Status.CREATED:
                raise Unknown("cannot checkpoint a task in created state")
            task.init.refuse("checkpoint", Status.STOPPED, of="container")
            with task.init.changing("checkpoint"):
                await task.container.checkpoint_to(request.path, from_any(request.options))
        return Empty()

    # --- questions ------------------------------------------------------------------------

    async def state(self, request: api.StateRequest) -> api.StateResponse:
        task = self.tenants.task(request.id)
        process = task.process(request.exec_id)
        status = process.status
        if process is not task.init and task.init.status in (Status.PAUSED, Status.PAUSING):
            status = task.init.status
        stdio = process.stdio
        return api.StateResponse(
            id=process.id or request.id,
            bundle=str(task.container.bundle),
            pid=process.pid,
            status=ProtoStatus(max(status, 0)),
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
            exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at),
        )

    async def pids(self, request: api.PidsRequest) -> api.PidsResponse:
        task = self.tenants.task(request.id)
        names = {process.pid: process.id for process in task.execs.values()}
        return api.PidsResponse(
            processes=[
                ProcessInfo(
                    pid=pid,
                    info=to_any(pack(ProcessDetails(exec_id=names[pid]))) if pid in names else None,
                )
                for pid in await task.container.pids()
            ]
        )

    async def stats(self, request: api.StatsRequest) -> api.StatsResponse:
        found = await self.tenants.task(request.id).container.stats()
        return api.StatsResponse(stats=to_any(pack(found)))

    async def connect(self, request: api.ConnectRequest) -> api.ConnectResponse:
        task = self.tenants.tasks.get(request.id)
        # A daemon asks this first, which has nothing kept of us if it was restarted.
        self._custody.wake()
        await self._custody.settled()
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=task.init.pid if task else 0)

    async def shutdown(self, request: api.ShutdownRequest) -> Empty:
        self.tenants.end_if_idle()
        return Empty()

    # --- streams --------------------------------------------------------------------------

    async def resize_pty(self, request: api.ResizePtyRequest) -> Empty:
        process = self.tenants.task(request.id).process(request.exec_id)
        if process.id:
            process.refuse("resize", Status.STOPPED, of="container")
        if process.console is not None:
            process.console.resize(request.width & 0xFFFF, request.height & 0xFFFF)
        return Empty()

    async def close_io(self, request: api.CloseIoRequest) -> Empty:
        self.tenants.task(request.id).process(request.exec_id).close_stdin()
        return Empty()

    # --- the rest -------------------------------------------------------------------------

    def take_over(self, task: Task) -> None:
        """Serve a container of a shim that has died."""
        self.tenants.admit(task)
        self._ends.take_over(task)

    async def aclose(self) -> None:
        """End what goes on in the background."""
        await self.background.aclose()


def _without_nulls(given: Any) -> Any:
    """The same JSON value without members that are null, as if they were not there."""
    match given:
        case dict():
            return {name: _without_nulls(each) for name, each in given.items() if each is not None}
        case list():
            return [_without_nulls(each) for each in given]
    return given
