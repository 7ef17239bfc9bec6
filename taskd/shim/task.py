"""A container with its processes, as the task service of a shim keeps them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from taskd.errors import NotFound
from taskd.shim.container import Container
from taskd.shim.process import Process

__all__ = ["Task"]


class Task:
    """A container, and the processes in it."""

    def __init__(self, container: Container, rootfs: Path | None) -> None:
        self.container = container
        self.rootfs = rootfs
        """What was mounted for it."""
        self.execs: dict[str, Process] = {}
        self.running = 0
        """Execs that run, or are being started."""
        self.starting: set[asyncio.Task[Any]] = set()
        """Those in which execs are being started."""
        self.quiet = asyncio.Event()
        self.quiet.set()
        self.init_ended = False
        """The init process has ended; its exit may not have been told yet."""
        self.lock = asyncio.Lock()
        """Held by what changes the container as a whole."""

    @property
    def init(self) -> Process:
        return self.container.init

    def process(self, exec_id: str) -> Process:
        """Raises `NotFound`."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    def exec_begins(self) -> None:
        self.running += 1
        self.quiet.clear()

    def exec_over(self) -> None:
        self.running -= 1
        if not self.running:
            self.quiet.set()
