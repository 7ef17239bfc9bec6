"""The task service of a shim, versions 2 and 3, around an author's containers.

It keeps the state of each process and says no, in containerd's words, to what cannot be done in it;
it tells the daemon what happens, and in the right order: a process's start before its exit, the
init process's exit after those of all execs. Sources: containerd's ``pkg/process`` (init_state.go,
exec_state.go) and ``runtime/v2/runc/task/service.go``, v1.7.24.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from taskd import mounts
from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    TaskdError,
    Unavailable,
    Unimplemented,
    Unknown,
    words,
)
from taskd.proto.containerd import events
from taskd.proto.containerd.runc.v1 import ProcessDetails
from taskd.proto.containerd.task import v3 as api
from taskd.proto.containerd.v1.types import ProcessInfo
from taskd.proto.containerd.v1.types import Status as ProtoStatus
from taskd.proto.google.protobuf import Empty
from taskd.shim import leftovers, sandboxed
from taskd.shim.answers import mount_rootfs, unary
from taskd.shim.container import Container
from taskd.shim.custody import Custody
from taskd.shim.process import Process, Status
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Ended, Reaper
from taskd.shim.sandbox import Sandbox
from taskd.shim.stdio import Stdio, Streams
from taskd.shim.task import Task
from taskd.ttrpc import Handler, Service
from taskd.wellknown import from_any, pack, timestamp, to_any

__all__ = ["TaskService"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_START_SECONDS = 10.0
"""For a process to be started when its client, or its container, has gone."""
_END_SECONDS = 2.0
"""For the end of a process that was never started to be told, once its container is deleted."""
_NAMES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class TaskService:
    """Serves the containers of one namespace; `stopped` is set when the last one is gone."""

    def __init__(
        self,
        kind: type[Container],
        namespace: str,
        reaper: Reaper,
        publisher: Publisher,
        custody: Custody | None = None,
    ) -> None:
        self._kind = kind
        self._namespace = namespace
        self._reaper = reaper
        self._publish = publisher.publish
        self._custody = custody
        self._tasks: dict[str, Task] = {}
        self._background: set[asyncio.Task[Any]] = set()
        # Containers that are being made, by id; set when that is over, be it undone.
        self._creating: dict[str, asyncio.Event] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        """Those that containers may be in; as long as there is one, the process goes on."""
        # The daemon wants it to end as soon as it has no containers.
        self._ending = False
        self.stopped = asyncio.Event()

    def services(self) -> list[Service]:
        """What a ttrpc server serves: both versions, whose messages are the same."""
        methods: dict[str, Handler] = {
            "Create": unary(api.CreateTaskRequest, self.create),
            "Start": unary(api.StartRequest, self.start),
            "Delete": unary(api.DeleteRequest, self.delete),
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

    # --- lifecycle ------------------------------------------------------------------------

    async def create(self, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        """A client that gives up does not stop it halfway: what is made then is removed again."""
        if request.id in self._tasks or request.id in self._creating:
            raise AlreadyExists(f"container {request.id}")
        making = self.in_background(self._create(request))
        over = self._creating[request.id] = asyncio.Event()
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            try:
                await making
                task = self._task(request.id)
                await self._tell_deleted(task.init, await self._delete_task(task))
            except Exception as exc:
                log.warning("undoing the creation of %s, which was given up: %s", request.id, exc)
            raise
        finally:
            del self._creating[request.id]
            over.set()
            self._stop_if_idle()

    async def _create(self, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        bundle = Path(request.bundle)
        options = from_any(request.options)
        container = self._kind(
            request.id,
            self._namespace,
            bundle,
            self._reaper,
            options if options is not None and (options.type_url or options.value) else None,
            request.checkpoint,
        )
        rootfs = bundle / "rootfs" if request.rootfs else None
        if (sandbox := self.sandboxes.get(sandboxed.of(bundle))) is not None:
            container.sandbox = sandbox
            sandboxed.note_container(sandbox.bundle, bundle)
        task = Task(container, rootfs)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        container.init = init = Process("", container.spec.get("process") or {}, stdio)
        try:
            if rootfs is not None:
                mount_rootfs(request.rootfs, rootfs)
            with self._reaper.starting():
                await self._open(task, init, "")
                init.pid = await container.create(init)
                if init.pid:
                    leftovers.note_init(bundle, init.pid)
                if sandbox is not None and sandbox.ending:
                    raise FailedPrecondition(f"sandbox {sandbox.id} has stopped")
                self._tasks[request.id] = task
                if init.pid:
                    self._born(init)
                if self._custody is not None:
                    self._custody.admit(task)
                self._publish(
                    events.TaskCreate(
                        container_id=request.id,
                        bundle=request.bundle,
                        rootfs=request.rootfs,
                        io=events.TaskIo(
                            stdin=request.stdin,
                            stdout=request.stdout,
                            stderr=request.stderr,
                            terminal=request.terminal,
                        ),
                        checkpoint=request.checkpoint,
                        pid=init.pid,
                    )
                )
                if init.pid:
                    self._follow(task, init)
                    self.in_background(self._watch_memory(task))
            await self._settled()
        except BaseException:
            with suppress(Exception):
                await container.abandon()
            await init.release(0)
            if rootfs is not None:
                mounts.unmount_below(rootfs)
            raise
        return api.CreateTaskResponse(pid=init.pid)

    def take_over(self, task: Task) -> None:
        """Serve a container of a shim that has died."""
        container = task.container
        self._tasks[container.id] = task
        if self._custody is not None:
            self._custody.admit(task)
        for process in (*task.execs.values(), task.init):
            if not process.pid or process.status in (Status.STOPPED, Status.DELETED):
                continue
            if process.pidfd >= 0 and type(container).end is Container.end:
                self._reaper.adopt(process.pid, os.dup(process.pidfd))
            if process is not task.init:
                task.exec_begins()
            self._follow(task, process)
        if task.init.pid:
            self.in_background(self._watch_memory(task))

    async def start(self, request: api.StartRequest) -> api.StartResponse:
        """A client that gives up does not stop it halfway, so that it is known what runs."""
        starting = self.in_background(self._start(request))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if starting.cancelled():  # for its container has ended
                words = f"container {request.id} init process is not running"
                raise FailedPrecondition(words) from None
            starting.add_done_callback(partial(_log_failure, "start"))
            asyncio.get_running_loop().call_later(_START_SECONDS, starting.cancel)
            raise

    async def _start(self, request: api.StartRequest) -> api.StartResponse:
        task = self._task(request.id)
        process = task.process(request.exec_id)
        async with process.lock:
            process.refuse("start", Status.RUNNING, Status.PAUSED, Status.STOPPED)
            process.begins("start")
            try:
                with self._reaper.starting():
                    if process is task.init:
                        await self._start_init(task)
                    else:
                        await self._start_exec(task, process)
            except BaseException:
                process.gives_up()
                raise
            await self._settled()
        return api.StartResponse(pid=process.pid)

    async def _start_init(self, task: Task) -> None:
        container, init = task.container, task.init
        before = init.pid
        if before:
            # It writes as soon as it is let go: nothing of that is to be held here any more.
            self._handed(init)
        init.pid = await container.start(init) or before
        if not before:
            self._born(init)
        self._handed(init)
        init.begun()
        self._publish(events.TaskStart(container_id=container.id, pid=init.pid))
        if not before:
            leftovers.note_init(container.bundle, init.pid)
            self._follow(task, init)
            self.in_background(self._watch_memory(task))

    async def _start_exec(self, task: Task, process: Process) -> None:
        container = task.container
        if task.init_ended:
            raise FailedPrecondition(f"container {container.id} init process is not running")
        task.exec_begins()
        starting = asyncio.current_task()
        assert starting is not None
        task.starting.add(starting)
        try:
            await self._open(task, process, process.id)
            process.pid = await container.exec(process)
        except BaseException:
            task.exec_over()
            await process.release(0)
            # Who waits for it need not wait any longer.
            process.ended.set()
            raise
        finally:
            task.starting.remove(starting)
        self._born(process)
        self._handed(process)
        process.begun()
        self._publish(
            events.TaskExecStarted(container_id=container.id, exec_id=process.id, pid=process.pid)
        )
        self._follow(task, process)

    async def delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        """A container that is being made is deleted once it is there, as by containerd's shim.

        That is how a daemon tells that nobody wants it any more: on a connection that goes on, no
        call can be taken back. It need not wait for it.
        """
        over = self._creating.get(request.id)
        if over is None or request.exec_id:
            return await self._delete(request)
        deleting = self.in_background(self._delete_made(over, request))
        try:
            return await asyncio.shield(deleting)
        except asyncio.CancelledError:
            deleting.add_done_callback(partial(_log_failure, "delete"))
            raise

    async def _delete_made(
        self, over: asyncio.Event, request: api.DeleteRequest
    ) -> api.DeleteResponse:
        await over.wait()
        try:
            return await self._delete(request)
        finally:
            self._stop_if_idle()

    async def _delete(self, request: api.DeleteRequest) -> api.DeleteResponse:
        task = self._task(request.id)
        process = task.process(request.exec_id)
        async with process.lock:
            process.refuse("delete", Status.RUNNING, Status.PAUSED)
            deleted = None
            if process is task.init:
                deleted = await self._delete_task(task)
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

    async def _tell_deleted(self, init: Process, deleted: events.TaskDelete) -> None:
        """One that was never started ends by being deleted: that is told first."""
        if init.pid:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await init.ended.wait()
        self._publish(deleted)

    async def _delete_task(self, task: Task) -> events.TaskDelete:
        container, init = task.container, task.init
        try:
            await container.delete()
        except Exception as exc:
            if container.bundle.exists():
                raise
            # The daemon has cleaned up after it, and nobody will ask again.
            log.warning("deleting %s, whose bundle is gone: %s", container.id, exc)
        await init.release()
        if task.rootfs is not None:
            try:
                mounts.unmount_below(task.rootfs)
            except OSError as exc:
                raise Unknown(f"failed rootfs umount: {words(exc)}") from exc
        await asyncio.gather(*(process.release() for process in task.execs.values()))
        del self._tasks[container.id]
        if self._custody is not None:
            self._custody.release(task)
        return events.TaskDelete(
            container_id=container.id,
            pid=init.pid,
            exit_status=init.exit_status,
            exited_at=timestamp(init.exited_at),
        )

    async def exec(self, request: api.ExecProcessRequest) -> Empty:
        task = self._task(request.id)
        if type(task.container).exec is Container.exec:
            raise Unimplemented("exec")
        if request.exec_id in task.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        if task.init.status in (Status.PAUSED, Status.STOPPED, Status.DELETED) or (
            # A checkpoint is restored by Start: there is nothing yet to run it in.
            task.init.status is Status.CREATED and task.container.checkpoint
        ):
            raise Unknown(f"cannot exec in a {task.init.status.name.lower()} state")
        try:
            spec = json.loads(request.spec.value if request.spec else b"")
        except ValueError as exc:
            raise Unknown(f"the process's specification is not JSON: {exc}") from exc
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        spec["terminal"] = request.terminal
        task.execs[request.exec_id] = process = Process(request.exec_id, spec, stdio)
        if self._custody is not None:
            self._custody.add(task, process)
        self._publish(events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    async def wait(self, request: api.WaitRequest) -> api.WaitResponse:
        process = self._task(request.id).process(request.exec_id)
        await process.ended.wait()
        return api.WaitResponse(
            exit_status=process.exit_status, exited_at=timestamp(process.exited_at)
        )

    async def kill(self, request: api.KillRequest) -> Empty:
        task = self._task(request.id)
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
        task = self._task(request.id)
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
        task = self._task(request.id)
        init = task.init
        async with init.lock:
            if init.status is Status.CREATED:
                raise Unknown("cannot resume task in created state")
            init.refuse("resume", Status.RUNNING)
            init.refuse("resume", Status.STOPPED, of="container")
            init.begins("resume")
            try:
                await task.container.resume()
            except BaseException:
                init.gives_up()
                raise
            init.begun()
            self._publish(events.TaskResumed(container_id=request.id))
        return Empty()

    async def update(self, request: api.UpdateTaskRequest) -> Empty:
        task = self._task(request.id)
        async with task.init.lock:
            task.init.refuse("update", Status.STOPPED, of="container")
            try:
                resources = json.loads(request.resources.value if request.resources else b"")
            except ValueError as exc:
                raise Unknown(f"the resources are not JSON: {exc}") from exc
            if not isinstance(resources, dict | None):
                raise Unknown(f"the resources are no JSON object: {type(resources).__name__}")
            await task.container.update(_without_nulls(resources or {}), request.annotations)
        return Empty()

    async def checkpoint(self, request: api.CheckpointTaskRequest) -> Empty:
        task = self._task(request.id)
        async with task.init.lock:
            if task.init.status is Status.CREATED:
                raise Unknown("cannot checkpoint a task in created state")
            task.init.refuse("checkpoint", Status.STOPPED, of="container")
            task.init.begins("checkpoint")
            try:
                await task.container.checkpoint_to(request.path, from_any(request.options))
            finally:
                task.init.gives_up()
        return Empty()

    # --- questions ------------------------------------------------------------------------

    async def state(self, request: api.StateRequest) -> api.StateResponse:
        task = self._task(request.id)
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
        task = self._task(request.id)
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
        found = await self._task(request.id).container.stats()
        return api.StatsResponse(stats=to_any(pack(found)))

    async def connect(self, request: api.ConnectRequest) -> api.ConnectResponse:
        task = self._tasks.get(request.id)
        if self._custody is not None:
            # A daemon asks this first, which has nothing kept of us if it was restarted.
            self._custody.keeper.wake()
            await self._settled()
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=task.init.pid if task else 0)

    async def shutdown(self, request: api.ShutdownRequest) -> Empty:
        self.end_if_idle()
        return Empty()

    def end_if_idle(self) -> None:
        """End as soon as there is nothing left to serve."""
        self._ending = True
        self._stop_if_idle()

    @property
    def is_idle(self) -> bool:
        return not (self._tasks or self._creating or self.sandboxes)

    def _stop_if_idle(self) -> None:
        if self._ending and self.is_idle:
            self.stopped.set()

    @asynccontextmanager
    async def standstill(self) -> AsyncIterator[list[Process]]:
        """All processes, of which none changes as long as this is open.

        What is under way has come to its end. Raises `Unavailable` if a container is being made.
        """
        async with AsyncExitStack() as held:
            for sandbox in list(self.sandboxes.values()):
                await held.enter_async_context(sandbox.lock)
            processes: list[Process] = []
            while more := [each for each in self._processes() if each not in processes]:
                for process in more:
                    await held.enter_async_context(process.lock)
                processes += more
            if self._creating:
                words = f"container {', '.join(self._creating)} is being made"
                raise Unavailable(words, verbatim=True)
            yield processes

    def _processes(self) -> Iterator[Process]:
        for task in self._tasks.values():
            yield from (task.init, *task.execs.values())

    # --- sandboxes ------------------------------------------------------------------------

    def admit(self, sandbox: Sandbox) -> None:
        """A sandbox has been made, or it is that of a shim which is no more."""
        self.sandboxes[sandbox.id] = sandbox
        if self._custody is not None:
            self._custody.admit_sandbox(sandbox)

    def dismiss(self, sandbox: Sandbox) -> None:
        """A sandbox is removed. Its record goes with its bundle."""
        self.sandboxes.pop(sandbox.id, None)
        if self._custody is not None:
            self._custody.release_sandbox(sandbox)

    async def kill_all(self, sandbox: Sandbox, seconds: float) -> None:
        """End the containers of a sandbox; they can be deleted when this returns.

        What has not ended within that time is left to its end.
        """
        tasks = self._within(sandbox)
        for task in tasks:
            with suppress(TaskdError):  # it may have ended, or not have begun
                if task.init.status is Status.PAUSED:
                    await self.resume(api.ResumeRequest(id=task.container.id))
                killing = api.KillRequest(id=task.container.id, signal=signal.SIGKILL, all=True)
                await self.kill(killing)
        if ends := [self.in_background(task.init.ended.wait()) for task in tasks if task.init.pid]:
            await asyncio.wait(ends, timeout=seconds)

    async def delete_all(self, sandbox: Sandbox) -> None:
        """Remove the containers of a sandbox."""
        for task in self._within(sandbox):
            try:
                await self.delete(api.DeleteRequest(id=task.container.id))
            except TaskdError as exc:
                log.error("deleting %s with its sandbox: %s", task.container.id, exc)

    def _within(self, sandbox: Sandbox) -> list[Task]:
        return [task for task in self._tasks.values() if task.container.sandbox is sandbox]

    # --- streams --------------------------------------------------------------------------

    async def resize_pty(self, request: api.ResizePtyRequest) -> Empty:
        process = self._task(request.id).process(request.exec_id)
        if process.id:
            process.refuse("resize", Status.STOPPED, of="container")
        if process.console is not None:
            process.console.resize(request.width & 0xFFFF, request.height & 0xFFFF)
        return Empty()

    async def close_io(self, request: api.CloseIoRequest) -> Empty:
        self._task(request.id).process(request.exec_id).close_stdin()
        return Empty()

    async def _open(self, task: Task, process: Process, exec_id: str) -> None:
        container = task.container
        process.streams = await Streams.open(
            process.stdio,
            exec_id or container.id,
            self._namespace,
            self._reaper,
            container.pipes,
            process.opened,
        )
        process.opened()

    async def _settled(self) -> None:
        """What has been done is not lost with this process."""
        if self._custody is not None:
            await self._custody.settled()

    def _born(self, process: Process) -> None:
        if self._custody is not None:
            self._custody.born(process)

    def _handed(self, process: Process) -> None:
        if process.streams is not None:
            process.streams.handed()
        else:
            process.opened()

    # --- ends -----------------------------------------------------------------------------

    def _follow(self, task: Task, process: Process) -> None:
        """Tell of the end of a process. To be called while it is being started."""
        end = task.container.end(process.pid)
        self.in_background(self._ended(task, process, end))

    async def _ended(self, task: Task, process: Process, end: asyncio.Future[Ended]) -> None:
        ended = await end
        process.gone.set()
        if process is task.init:
            task.init_ended = True
            try:
                await task.container.ended()
            except Exception:
                log.exception("ending what was left of %s", task.container.id)
            if task.starting:
                # A runtime that hangs must not keep an exit from being told.
                _, late = await asyncio.wait(task.starting, timeout=_START_SECONDS)
                for starting in late:
                    starting.cancel()
            await task.quiet.wait()
        # Whoever is starting it tells of that first.
        async with process.lock:
            # Who is told of its end may read all that it has written.
            try:
                await process.settle()
            except Exception:
                log.exception("copying the last output of %s", task.container.id)
            paused = process.status is Status.PAUSED
            process.stopped(ended)
            process.let_go()
            if paused:
                with suppress(Exception):
                    await task.container.resume()
            process.ended.set()
            self._publish(
                events.TaskExit(
                    container_id=task.container.id,
                    id=process.id or task.container.id,
                    pid=process.pid,
                    exit_status=ended.status,
                    exited_at=timestamp(process.exited_at),
                )
            )
        if process is not task.init:
            task.exec_over()

    async def _watch_memory(self, task: Task) -> None:
        container = task.container
        with suppress(OSError):
            if not container.owns_cgroup:
                return
            async with aclosing(container.cgroup.ooms()) as notices:
                async for _ in notices:
                    self._publish(events.TaskOom(container_id=container.id))

    def in_background(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Let `work` go on for as long as the service does."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def aclose(self) -> None:
        """End what goes on in the background."""
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    # --- the rest -------------------------------------------------------------------------

    def _task(self, id: str) -> Task:  # noqa: A002
        try:
            return self._tasks[id]
        except KeyError:
            raise NotFound("container not created") from None


def _without_nulls(given: Any) -> Any:
    """The same JSON value without members that are null, as if they were not there."""
    match given:
        case dict():
            return {name: _without_nulls(each) for name, each in given.items() if each is not None}
        case list():
            return [_without_nulls(each) for each in given]
    return given


def _log_failure(doing: str, work: asyncio.Task[Any]) -> None:
    if not work.cancelled() and (exc := work.exception()) is not None:
        log.warning("a %s that nobody waited for: %s", doing, exc)
