"""Who is told of what becomes of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from taskd.runtime.bundle import Bundle
from taskd.runtime.types import CreateOptions, Exit, TaskState

if TYPE_CHECKING:
    from taskd.runtime.shim import Shim

__all__ = ["Observer"]


class Observer(Protocol):
    """Is told of each step of each process, before whoever asked for that step.

    An empty `exec_id` means the init process.
    """

    async def created(self, shim: Shim, options: CreateOptions) -> None:
        """A task was made. It is undone if this raises: the journal does not take it."""

    async def abandoned(self, shim: Shim, options: CreateOptions, found: Exit | None) -> None:
        """A task that was to be made is gone; `found` is its exit if it had been made already."""

    def starting(self, shim: Shim, exec_id: str) -> None:
        """A process is about to be started."""

    def not_started(self, shim: Shim, exec_id: str) -> None:
        """The shim could not start a process."""

    async def started(self, shim: Shim, exec_id: str) -> None:
        """A process was started; its pid is in `shim`."""

    async def exec_deleted(self, shim: Shim, exec_id: str, found: Exit) -> None:
        """An exec that had exited was removed."""

    async def deleted(self, shim: Shim, found: Exit | None) -> None:
        """A task was removed; its exit, if the shim knew."""

    async def found(self, shim: Shim, state: TaskState) -> None:
        """The shim of an earlier daemon has answered."""

    async def lost(self, bundle: Bundle, found: Exit) -> None:
        """A shim died; it has been cleaned up after, and this is what is known of its exit."""
