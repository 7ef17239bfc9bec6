"""What differs from one generation of shims to the next, in the domain's terms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.types import CreateOptions, Exit, ProcessInfo, Stdio, TaskState
from taskd.types import TypedValue

__all__ = ["V1_RUNTIME", "Binary", "Generation", "TaskApi", "later"]

V1_RUNTIME = "io.containerd.runtime.v1.linux"
"""Name of the deprecated runtime, whose generation is `taskd.runtime.v1`."""


class Binary(Protocol):
    """A shim's executable, called for one bundle."""

    @property
    def path(self) -> Path: ...

    @property
    def bundle(self) -> Bundle: ...

    @property
    def deletes_after_shutdown(self) -> bool:
        """Whether `delete` is called even after a shim that has ended well."""

    async def features(self, options: TypedValue | None) -> TypedValue | None:
        """What the runtime with these `options` can do, if it is known."""

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        """Start a shim; it goes on when this returns. Those of one `group` share a process."""

    async def adopt(self, bundles: Iterable[Bundle], group: str = "") -> Bootstrap:
        """Leave a shim running that goes on with the containers of one that has died."""

    async def delete(self) -> Exit:
        """Clean up after a shim that cannot be asked; returns what is known of the task's exit."""


class TaskApi(Protocol):
    """One task of one shim. An empty `exec_id` means the init process.

    Every call raises the error that the shim answered, `DeadlineExceeded` when the caller's
    deadline (the innermost cancel scope's) is over, or `ttrpc.ConnectionClosed`.
    """

    @property
    def tells_oom(self) -> bool:
        """Whether the shim publishes that its container has run out of memory."""

    async def create(self, bundle: str, options: CreateOptions) -> int:
        """Make the container; returns the pid of its init process."""

    async def start(self, exec_id: str) -> int:
        """Start a created process; returns its pid."""

    async def state(self, exec_id: str, *, timeout: float | None = None) -> TaskState: ...

    async def delete(self, exec_id: str) -> Exit:
        """Remove a process that has exited."""

    async def delete_task(self) -> Exit:
        """The same for the init process, in the words of a call that deletes the task."""

    async def exec(self, exec_id: str, spec: TypedValue | None, stdio: Stdio) -> None:
        """Add a process to the task; `spec` is an OCI process as JSON."""

    async def wait(self, exec_id: str) -> Exit:
        """Wait for a process to exit, however long; the exit's pid is not known here (0)."""

    async def kill(self, exec_id: str, signal: int, everyone: bool) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def pids(self) -> list[ProcessInfo]: ...

    async def resize_pty(self, exec_id: str, width: int, height: int) -> None: ...

    async def close_stdin(self, exec_id: str) -> None: ...

    async def update(
        self, resources: TypedValue | None, annotations: Mapping[str, str]
    ) -> None: ...

    async def stats(self, *, timeout: float) -> TypedValue | None: ...

    async def checkpoint(self, path: str, options: TypedValue | None) -> None: ...

    async def connect(self) -> int:
        """Pid of the shim's own process."""

    async def shutdown(self) -> None:
        """End the shim, unless it has other containers."""


async def _no_version(path: Path) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Generation:
    """How shims of one generation are found, called, and spoken to."""

    resolve: Callable[[str], Path]
    """Finds the executable of a runtime's name. Raises `Unknown`."""
    binary: Callable[[Path, Bundle], Binary]
    task: Callable[[Connection, Bundle, Bootstrap], TaskApi]
    socket: Callable[[Bundle], Path]
    """Where a shim may have listened that was killed before it could say where."""
    pools: Callable[[Path], bool] = lambda _: False
    """Whether an executable's process holds many containers, and goes on without any."""
    version: Callable[[Path], Awaitable[str]] = _no_version
    """Version of taskd that an executable is of; empty if it does not tell. Raises `Unknown`."""


def later(load: Callable[[], Generation]) -> Generation:
    """A generation that is loaded when somebody uses it."""
    loaded = cache(load)
    return Generation(
        resolve=lambda runtime: loaded().resolve(runtime),
        binary=lambda path, bundle: loaded().binary(path, bundle),
        task=lambda connection, bundle, bootstrap: loaded().task(connection, bundle, bootstrap),
        socket=lambda bundle: loaded().socket(bundle),
        pools=lambda path: loaded().pools(path),
        version=lambda path: loaded().version(path),
    )
