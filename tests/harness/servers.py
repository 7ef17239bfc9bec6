"""A daemon of every kind that the client is for: taskd, and each generation of containerd."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.daemons import LATE_GC, Containerd, Daemon, Taskd
from harness.generations import GENERATIONS, Generation
from harness.real import need

__all__ = ["SERVERS", "Server"]


@dataclass(frozen=True)
class Server:
    """taskd if `generation` is None."""

    generation: Generation | None = None

    def __str__(self) -> str:
        return f"containerd-{self.generation}" if self.generation else "taskd"

    @property
    def is_taskd(self) -> bool:
        return self.generation is None

    @contextmanager
    def running(self) -> Iterator[Daemon]:
        need("containerd", "containerd-shim-runc-v2", "runc")
        folder = Path(tempfile.mkdtemp(prefix="taskd-"))
        binaries = self.generation.binaries() if self.generation else None
        path = f"{binaries}:{os.environ['PATH']}" if binaries else ""
        kind: Daemon = (
            Containerd(folder, path=path)
            if self.generation
            else Taskd(folder, "--log-level", "debug", settings=LATE_GC)
        )
        try:
            with kind as daemon:
                yield daemon
        finally:
            print(kind.log.read_text()[-20_000:])
            shutil.rmtree(folder, ignore_errors=True)


SERVERS = (Server(), *map(Server, GENERATIONS))
