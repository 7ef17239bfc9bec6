"""Start, of a container and of an exec in it: what runs is known, whoever has given up."""

from __future__ import annotations

from dataclasses import dataclass

from taskd.proto.containerd.task import v3 as api
from taskd.shim import leftovers
from taskd.shim.background import Background
from taskd.shim.custody import Custody
from taskd.shim.ends import Ends
from taskd.shim.process import Process, Status
from taskd.shim.publisher import Publisher
from taskd.shim.task import START_SECONDS, Task
from taskd.shim.tenants import Tenants

__all__ = ["Starts"]


@dataclass(frozen=True)
class Starts:
    """Starts processes; each is told of before its end is."""

    tenants: Tenants
    custody: Custody
    ends: Ends
    background: Background
    publisher: Publisher

    async def start(self, request: api.StartRequest) -> api.StartResponse:
        """A client that gives up does not stop it halfway, so that it is known what runs."""
        starting = self._start(request)
        return await self.background.to_its_end("start", starting, START_SECONDS)

    async def _start(self, request: api.StartRequest) -> api.StartResponse:
        task = self.tenants.task(request.id)
        process = task.process(request.exec_id)
        async with process.lock:
            process.refuse("start", Status.RUNNING, Status.PAUSED, Status.STOPPED)
            with process.changing("start"), task.container.reaper.starting():
                if process is task.init:
                    await self._start_init(task)
                else:
                    await self._start_exec(task, process)
            await self.custody.settled()
        return api.StartResponse(pid=process.pid)

    async def _start_init(self, task: Task) -> None:
        container, init = task.container, task.init
        before = init.pid
        if before:
            # It writes as soon as it is let go: nothing of that is to be held here any more.
            init.handed()
        init.pid = await container.start(init) or before
        if not before:
            self.custody.born(init)
        init.handed()
        init.begun()
        self.publisher.publish(task.started(init))
        if not before:
            leftovers.note_init(container.bundle, init.pid)
            self.ends.follow(task, init)

    async def _start_exec(self, task: Task, process: Process) -> None:
        with task.starting_exec():
            try:
                await task.open(process)
                process.pid = await task.container.exec(process)
            except BaseException:
                await process.release(0)
                # Who waits for it need not wait any longer.
                process.ended.set()
                raise
        self.custody.born(process)
        process.handed()
        process.begun()
        self.publisher.publish(task.started(process))
        self.ends.follow(task, process)
