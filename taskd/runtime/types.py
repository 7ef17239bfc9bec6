"""What a task is, in the domain's terms.

The shim APIs differ from generation to generation; everything above this floor sees only these.
Times are nanoseconds since the epoch; a time that a shim left out is Go's zero time, as it is for
containerd (``protobuf.FromTimestamp``).
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from taskd.types import Mount, TypedValue

__all__ = [
    "GO_ZERO_TIME",
    "CreateOptions",
    "Exit",
    "Key",
    "ProcessInfo",
    "Status",
    "Stdio",
    "TaskState",
]

GO_ZERO_TIME = -62135596800 * 10**9
"""0001-01-01T00:00:00Z in nanoseconds since the epoch."""


class Key(NamedTuple):
    """Which task."""

    namespace: str
    id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.id}"


class Status(enum.IntEnum):
    """State of a process; the numbers are those of ``containerd.v1.types.Status``."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class Stdio(NamedTuple):
    """Where a process reads and writes: paths of FIFOs, or ``file://`` and ``binary://`` URIs."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """Everything that a new task is made from."""

    runtime: str
    """Name (``io.containerd.runc.v2``) or absolute path of the shim's binary."""
    spec: TypedValue | None = None
    """The OCI runtime specification, as JSON."""
    task_options: TypedValue | None = None
    """The runtime's own options, as the call has them."""
    runtime_options: TypedValue | None = None
    """The same, as the container has them."""
    stdio: Stdio = field(default_factory=Stdio)
    rootfs: tuple[Mount, ...] = ()
    sandbox: str = ""
    """Id of the sandbox that the container is in, or empty."""
    checkpoint: str = ""
    """Folder of a checkpoint to restore, or empty."""
    unpack_checkpoint: Callable[[Path], Awaitable[None]] | None = None
    """Makes such a folder, which is then the bundle's: the shim reads it as late as at Start."""

    @property
    def options(self) -> TypedValue | None:
        """Those of the call, or else those of the container."""
        return self.task_options or self.runtime_options


class TaskState(NamedTuple):
    pid: int = 0
    status: Status = Status.UNKNOWN
    stdio: Stdio = Stdio()
    exit_status: int = 0
    exited_at: int = GO_ZERO_TIME


@dataclass(frozen=True, slots=True)
class Exit:
    pid: int
    status: int
    exited_at: int


class ProcessInfo(NamedTuple):
    pid: int
    info: TypedValue | None = None
