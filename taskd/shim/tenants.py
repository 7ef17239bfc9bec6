"""Who lives in a shim's process, which ends when the daemon wants it to and nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from taskd.errors import AlreadyExists, NotFound, Unavailable
from taskd.shim.custody import Custody
from taskd.shim.process import Process
from taskd.shim.sandbox import Sandbox
from taskd.shim.task import Task

__all__ = ["Tenants"]


class Tenants:
    """Containers, such as are being made, and the sandboxes that containers may be in."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.tasks: dict[str, Task] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        # Containers that are being made, by id; set when that is over, be it undone.
        self._making: dict[str, asyncio.Event] = {}
        # The daemon wants the process to end as soon as nobody lives in it.
        self._ending = False
        self.stopped = asyncio.Event()
        """The last one is gone, and the process is to end."""

    # --- containers -----------------------------------------------------------------------

    def task(self, id: str) -> Task:  # noqa: A002
        """Raises `NotFound`."""
        try:
            return self.tasks[id]
        except KeyError:
            raise NotFound("container not created") from None

    def admit(self, task: Task) -> None:
        """A container has been made, or it is that of a shim which is no more."""
        self.tasks[task.container.id] = task
        self._custody.admit(task)

    def remove(self, task: Task) -> None:
        del self.tasks[task.container.id]
        self._custody.release(task)

    @contextmanager
    def making(self, id: str) -> Iterator[None]:  # noqa: A002
        """While a container is made, or that is undone. Raises `AlreadyExists`."""
        if id in self.tasks or id in self._making:
            raise AlreadyExists(f"container {id}")
        over = self._making[id] = asyncio.Event()
        try:
            yield
        finally:
            del self._making[id]
            over.set()
            self.stop_if_idle()

    def made(self, id: str) -> asyncio.Event | None:  # noqa: A002
        """Set when a container is there, or its making undone; None if none is being made."""
        return self._making.get(id)

    # --- sandboxes ------------------------------------------------------------------------

    def admit_sandbox(self, sandbox: Sandbox) -> None:
        """A sandbox has been made, or it is that of a shim which is no more."""
        self.sandboxes[sandbox.id] = sandbox
        self._custody.admit_sandbox(sandbox)

    def remove_sandbox(self, sandbox: Sandbox) -> None:
        """Its record goes with its bundle."""
        self.sandboxes.pop(sandbox.id, None)
        self._custody.release_sandbox(sandbox)

    def within(self, sandbox: Sandbox) -> list[Task]:
        return [task for task in self.tasks.values() if task.container.sandbox is sandbox]

    # --- all of them ----------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not (self.tasks or self._making or self.sandboxes)

    def end_if_idle(self) -> None:
        """End as soon as there is nothing left to serve."""
        self._ending = True
        self.stop_if_idle()

    def stop_if_idle(self) -> None:
        """Somebody has gone, who may have been the last."""
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
            if self._making:
                words = f"container {', '.join(self._making)} is being made"
                raise Unavailable(words, verbatim=True)
            yield processes

    def _processes(self) -> Iterator[Process]:
        for task in self.tasks.values():
            yield from task.processes
