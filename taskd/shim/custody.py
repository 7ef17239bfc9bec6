"""Seeing to it that another shim can go on with the containers of this one, if it dies.

What there is to know of each container is written into its bundle, and what its processes have
open is kept by the daemon. Without a daemon that keeps it, as under containerd, nothing is done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from taskd import procfs, slots
from taskd.shim import record
from taskd.shim.container import Container
from taskd.shim.keeper import Keeper
from taskd.shim.process import Process
from taskd.shim.record import ProcessRecord, Record, SandboxRecord
from taskd.shim.sandbox import Sandbox
from taskd.shim.task import Task

__all__ = ["Custody", "Kept", "custody"]

log = logging.getLogger(__name__)


class Custody:
    """Of all containers of a shim. As it stands, nobody's: they end with it."""

    keeper: Keeper | None = None

    def wake(self) -> None:
        """There is a daemon, which may be another one."""

    def admit(self, task: Task) -> None:
        """A container has been made, or taken over."""

    def admit_sandbox(self, sandbox: Sandbox) -> None:
        """A sandbox has been made, or taken over."""

    def release_sandbox(self, sandbox: Sandbox) -> None:
        """A sandbox is removed. Its record goes with its bundle."""

    def add(self, task: Task, process: Process) -> None:
        """An exec is to be started in it."""

    def born(self, process: Process) -> None:
        """A process has its pid, by which alone it could not be told from others.

        It is written down with what comes of it next.
        """

    def release(self, task: Task) -> None:
        """A container is deleted. Its record, which says so, goes with its bundle."""

    async def settled(self) -> None:
        """Wait until all that has been done can be gone on with; what could not is in the log."""


class Kept(Custody):
    """The daemon's."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper: Keeper = keeper

    def wake(self) -> None:
        self.keeper.wake()

    def admit(self, task: Task) -> None:
        for process in task.processes:
            self._follow(task, process)
        self._write(task)

    def admit_sandbox(self, sandbox: Sandbox) -> None:
        if sandbox.survives():
            sandbox.noted = partial(self._write_sandbox, sandbox)
            sandbox.noted()

    def release_sandbox(self, sandbox: Sandbox) -> None:
        sandbox.noted = _nothing

    def add(self, task: Task, process: Process) -> None:
        self._follow(task, process)
        self._write(task)

    def born(self, process: Process) -> None:
        with suppress(OSError):  # it has ended, and been reaped
            process.pidfd = os.pidfd_open(process.pid)
            process.started = procfs.stat(process.pid).started

    def release(self, task: Task) -> None:
        task.init.deleted()
        for process in task.processes:
            process.disregard()
            process.let_go()
        self.keeper.forget(task.container.id)

    async def settled(self) -> None:
        await self.keeper.settled()

    def _follow(self, task: Task, process: Process) -> None:
        process.regard(partial(self._write, task), partial(self._keep, task, process))
        if process.kept():
            process.opened()

    def _keep(self, task: Task, process: Process) -> None:
        self.keeper.keep(task.container.id, process.id, process.kept())

    def _write(self, task: Task) -> None:
        container = task.container
        whole = Record(
            container.id,
            container.namespace,
            container.options,
            container.checkpoint,
            task.rootfs is not None,
            tuple(ProcessRecord.of(process) for process in task.processes),
        )
        if container.sandbox is None or container.sandbox.survives():
            self._record(container.bundle, whole)

    def _write_sandbox(self, sandbox: Sandbox) -> None:
        self._record(sandbox.bundle, SandboxRecord.of(sandbox))

    def _record(self, bundle: Path, whole: Record | SandboxRecord) -> None:
        try:
            record.write(bundle, whole)
        except (OSError, ValueError, TypeError) as exc:
            log.error("%s cannot be gone on with: %s", bundle.name, exc)
            record.forget(bundle)


def _nothing() -> None:
    """Nobody has to know."""


def custody(kind: type[Container], environment: Mapping[str, str], namespace: str) -> Custody:
    """Nobody's if there is no daemon that keeps anything, or containers of `kind` end with theirs.

    Those have processes of their own kind, of which nobody has said how to go on with them.
    """
    address = environment.get(slots.ADDRESS)
    if not address or not kind.survives():
        return Custody()
    return Kept(Keeper(address, namespace))
