"""How processes end, and in which order that is told: a container's own after all of its execs."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing, suppress
from dataclasses import dataclass

from taskd.proto.containerd.events import TaskOom
from taskd.shim.background import Background
from taskd.shim.container import Container
from taskd.shim.process import Process, Status
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Ended
from taskd.shim.task import Task

__all__ = ["Ends"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ends:
    """Tells of the end of each process, and whenever the memory of a container has run out."""

    background: Background
    publisher: Publisher

    def follow(self, task: Task, process: Process) -> None:
        """Tell of the end of a process. To be called while it is being started."""
        end = task.container.end(process.pid)
        self.background.begin(self._ended(task, process, end))
        if process is task.init:
            self.background.begin(self._watch_memory(task))

    def take_over(self, task: Task) -> None:
        """Tell of all ends that another shim has not told."""
        container = task.container
        for process in task.processes:
            if not process.pid or process.status in (Status.STOPPED, Status.DELETED):
                continue
            if process.pidfd >= 0 and type(container).end is Container.end:
                container.reaper.adopt(process.pid, os.dup(process.pidfd))
            if process is not task.init:
                task.exec_begins()
            self.follow(task, process)

    async def _ended(self, task: Task, process: Process, end: asyncio.Future[Ended]) -> None:
        ended = await end
        process.gone.set()
        if process is task.init:
            task.init_ended = True
            try:
                await task.container.ended()
            except Exception:
                log.exception("ending what was left of %s", task.container.id)
            await task.quiet()
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
            self.publisher.publish(task.exited(process))
        if process is not task.init:
            task.exec_over()

    async def _watch_memory(self, task: Task) -> None:
        container = task.container
        with suppress(OSError):
            if not container.owns_cgroup:
                return
            async with aclosing(container.cgroup.ooms()) as notices:
                async for _ in notices:
                    self.publisher.publish(TaskOom(container_id=container.id))
