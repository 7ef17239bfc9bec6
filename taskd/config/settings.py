"""What can be set, and what it is if nobody does."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from taskd.diff.limits import Limits
from taskd.errors import InvalidArgument
from taskd.events.journal import Retention
from taskd.gc.policy import Policy
from taskd.logs import Format
from taskd.nats.settings import NatsConfig
from taskd.runtime.pool import PoolLimits
from taskd.snapshots.settings import SnapshotsConfig
from taskd.transfer.settings import TransferConfig

__all__ = [
    "TIMEOUTS",
    "Config",
    "EventsConfig",
    "GrpcConfig",
    "RestartConfig",
    "ShimsConfig",
    "TracingConfig",
]

TIMEOUTS: Mapping[str, float] = {
    "io.containerd.timeout.shim.cleanup": 5.0,
    "io.containerd.timeout.shim.load": 5.0,
    "io.containerd.timeout.shim.shutdown": 3.0,
    "io.containerd.timeout.task.state": 2.0,
    "io.taskd.timeout.shim.start": 60.0,
}
"""Bounds on waiting for shims, with their defaults in seconds."""

_POOL = 10
"""Containers that share a process where they survive it, if nobody says how many."""


@dataclass(frozen=True, slots=True)
class EventsConfig:
    sync: Literal["full", "normal"] = "normal"
    """What a published event survives: a power cut, or the end of the daemon."""
    retention: Retention = field(default_factory=Retention)
    node: str = field(default_factory=platform.node)
    """This machine among those whose events are collected in one place."""
    nats: NatsConfig | None = None
    """Where that place is."""


@dataclass(frozen=True, slots=True)
class TracingConfig:
    endpoint: str
    """Base URL of a collector that takes OTLP over HTTP."""
    sampling_ratio: float = 1.0
    """Share of traces that begin here which are sent; others' go as their client says."""
    service_name: str = "taskd"


@dataclass(frozen=True, slots=True)
class ShimsConfig:
    """How shims that are written in Python are run."""

    warm: bool = True
    """They are forked from a process that has imported them, instead of being executed."""
    pool: int | None = None
    """Containers of a runtime and a namespace that share a process, whether they survive it or not;
    if nobody says, ten of those that do, and one of others.
    """
    shared: bool = False
    """All of them do, however many there are."""
    lifetime: int = PoolLimits.lifetime
    """Containers that a shared process is given before another one takes its place."""
    idle: float = PoolLimits.idle
    """Seconds for which a shared process waits for more."""
    adopt: bool = True
    """When one dies, another goes on with its containers, where the kernel tells enough of them."""
    renew: bool = True
    """Those of an older version than what is installed are, when the daemon starts."""

    def limits(self, *, survival: bool) -> PoolLimits:
        """Of the pools of a daemon in which containers may survive their shim, or cannot."""
        unsaid = self.pool is None and not self.shared
        size = math.inf if self.shared else self.pool or (_POOL if survival else 1)
        return PoolLimits(size, self.lifetime, self.idle, of_survivors=unsaid)


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    engine: Literal["", "h2", "ngh2"] = ""
    """What carries HTTP/2; without one, ngh2 where it is installed, and else h2."""
    uid: int = -1
    gid: int = -1
    """Whose the gRPC socket is, if not this process's. Who may connect to it is as good as root."""


@dataclass(frozen=True, slots=True)
class RestartConfig:
    """Of the restart monitor; the name and default are containerd's."""

    interval: float = 10.0
    """Seconds between two looks at containers whose labels say that they are to run."""


@dataclass(frozen=True, slots=True)
class Config:
    root: Path = field(default_factory=lambda: _usual_root())
    state: Path = field(default_factory=lambda: _usual_state())
    address: Path | None = None
    """gRPC socket; ``taskd.sock`` in the state folder if none is given."""
    log_level: str = "info"
    log_format: Format = "text"
    shutdown_timeout: float = 10.0
    """Seconds that calls in flight have to finish when the daemon is told to stop."""
    blockio_config_file: Path | None = None
    """Classes of block I/O, in goresctrl's YAML."""
    rdt_config_file: Path | None = None
    """Classes of cache and memory bandwidth, in goresctrl's YAML."""
    resctrl_path: Path | None = None
    """The resctrl file system; where it is mounted if none is given."""
    timeouts: Mapping[str, float] = field(default_factory=lambda: dict(TIMEOUTS))
    gc: Policy = field(default_factory=Policy)
    diff: Limits = field(default_factory=Limits)
    events: EventsConfig = field(default_factory=EventsConfig)
    metrics: tuple[str, int] | None = None
    """Host and port on which Prometheus is answered."""
    tracing: TracingConfig | None = None
    shims: ShimsConfig = field(default_factory=ShimsConfig)
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """Names of runtimes, and of those that answer in their stead."""
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)
    snapshots: SnapshotsConfig = field(default_factory=SnapshotsConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    @property
    def socket(self) -> Path:
        """Where gRPC is served."""
        return self.address or self.state / "taskd.sock"

    @property
    def ttrpc_socket(self) -> Path:
        """Where ttrpc is served, to shims: beside the gRPC socket, as containerd has it."""
        return self.socket.with_name(f"{self.socket.name}.ttrpc")

    @property
    def store_socket(self) -> Path:
        """Where shims have their descriptors kept."""
        return self.socket.with_name(f"{self.socket.name}.store")


def _usual_root() -> Path:
    """``/var/lib/taskd``, and of a user that is not root ``~/.local/share/taskd`` (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/lib/taskd")
    return Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser(), "taskd")


def _usual_state() -> Path:
    """``/run/taskd``, and of a user that is not root ``taskd`` in the runtime folder (XDG).

    Raises `InvalidArgument` if that is not known.
    """
    if os.geteuid() == 0:
        return Path("/run/taskd")
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if not Path(folder).is_dir():
        raise InvalidArgument(
            f"user {os.geteuid()} has no runtime folder ({folder}): set XDG_RUNTIME_DIR, or name "
            "the state folder, or the socket",
            verbatim=True,
        )
    return Path(folder, "taskd")
