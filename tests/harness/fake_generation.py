"""Shims that are told what to do by a test, beneath a real manager."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from taskd import ttrpc
from taskd.errors import NotFound, TaskdError, Unknown
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.generation import Generation
from taskd.runtime.manager import TaskManager
from taskd.runtime.pool import PoolLimits
from taskd.runtime.settings import Settings, Timeouts
from taskd.runtime.shims import Shims
from taskd.runtime.types import CreateOptions, Exit, Status, TaskState
from taskd.types import TypedValue

__all__ = ["OPTIONS", "Api", "Connection", "Observer", "World", "bundles", "managing"]

OPTIONS = CreateOptions("a.shim", spec=TypedValue("spec", b"{}"))
SHIM = """
import os, socket, subprocess, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if sys.argv[2:]:
    heir = subprocess.Popen(["/bin/sleep", "1000"], pass_fds=[listener.fileno()])
    open(sys.argv[2], "w").write(str(heir.pid))
open(sys.argv[1] + ".ready", "w").close()
time.sleep(1000)
"""


class Observer:
    """Takes note of ends alone."""

    refuses: TaskdError | None = None

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    async def created(self, *_: object) -> None:
        if self.refuses:
            raise self.refuses

    async def abandoned(self, task: object, options: object, found: object) -> None:
        self.told.append(("abandoned", found))

    async def deleted(self, task: object, found: object) -> None:
        self.told.append(("deleted", found))

    async def lost(self, task: object, found: Exit) -> None:
        self.told.append(("lost", found.status))

    async def found(self, *_: object) -> None: ...


class World:
    """Shims that are told what to do by a test; each has a process that listens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.connections: dict[str, Connection] = {}
        self.asked: list[str] = []
        """Bundles of those that were asked to shut down."""
        self.deleted: list[str] = []
        """Bundles for which ``delete`` was run."""
        self.gone: set[str] = set()
        self.waiting = 0
        """Calls of Wait; they have no answer."""
        self.undone: list[tuple[str, bool]] = []
        """Tasks of which a process was asked to delete them, and whether there was a bundle."""
        self.delete_error: Exception | None = None
        self.create_error: BaseException | None = None
        self.start_error: Exception | None = None
        self.made_first = False
        """Whether Create makes an init process before it fails."""
        self.tells_pid = True
        self.agrees = True
        self.deletes_after_shutdown = True
        self.deletion: Exit | Exception | None = Unknown("no such thing")
        """What a shim answers to Delete; without it, it hangs."""
        self.reachable = True
        self.pools = False
        self.traits: dict[str, str] = {}
        """Files that a process of a pool leaves in its folder, which say what its containers are.
        """
        self.silent: set[str] = set()
        """Those that do not tell their pid, nor anything else that is of no task."""
        self.heir: Path | None = None
        """Where a shim is to write the pid of a process that inherits its socket, if it has one."""
        self.name = ""
        """Name of the process that the next shims share."""

    def socket(self, bundle: Bundle) -> Path:
        return self.folder / f"{self.name or bundle.id}.sock"

    def begin(self, bundle: Bundle) -> Bootstrap:
        path = self.socket(bundle)
        if path.name not in self.processes:
            heir = [str(self.heir)] if self.heir else []
            command = [sys.executable, "-S", "-c", SHIM, str(path), *heir]
            # Not in the bundle, as one of a group is not.
            self.processes[path.name] = subprocess.Popen(command, cwd="/")
        while not path.with_name(f"{path.name}.ready").exists():
            time.sleep(0.005)
        return Bootstrap(f"unix://{path}")

    def runs(self, name: str) -> bool:
        return self.processes[f"{name}.sock"].poll() is None

    def generation(self) -> Generation:
        return Generation(
            resolve=Path,
            binary=lambda path, bundle: Binary(self, path, bundle),  # type: ignore[arg-type,return-value]
            task=lambda connection, bundle, bootstrap: Api(self, connection, bundle),  # type: ignore[arg-type,return-value]
            socket=self.socket,
            pools=lambda _: self.pools,
        )


class Binary:
    def __init__(self, world: World, path: Path, bundle: Bundle) -> None:
        self.world, self.path, self.bundle = world, path, bundle
        self.deletes_after_shutdown = world.deletes_after_shutdown

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        bootstrap = self.world.begin(self.bundle)
        if group:
            for name, text in self.world.traits.items():
                (self.bundle.path / name).write_text(text)
        if self.world.start_error:
            raise self.world.start_error
        return bootstrap

    async def delete(self) -> Exit:
        self.world.deleted.append(self.bundle.id)
        if self.world.delete_error:
            raise self.world.delete_error
        return Exit(7, 137, 1)


class Connection:
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def wait_closed(self) -> None:
        await self.closed.wait()

    async def aclose(self) -> None:
        self.closed.set()


class Api:
    tells_oom = True

    def __init__(self, world: World, connection: Connection, bundle: Bundle) -> None:
        self.world, self.bundle = world, bundle
        self.connection = getattr(connection, "connection", connection)
        world.connections[bundle.id] = self.connection

    async def create(self, bundle: str, options: CreateOptions) -> int:
        await anyio.sleep(0.05)
        if self.world.made_first:
            (self.bundle.path / "init.pid").write_text("7")
        if self.world.create_error:
            raise self.world.create_error
        return 7

    async def connect(self) -> int:
        if not self.world.tells_pid or self.bundle.id in self.world.silent:
            await anyio.sleep_forever()
        return self.world.processes[self.world.socket(self.bundle).name].pid

    async def state(self, exec_id: str, *, timeout: float) -> TaskState:
        if self.bundle.id in self.world.gone:
            raise NotFound(self.bundle.id)
        return TaskState(pid=7, status=Status.RUNNING)

    async def wait(self, exec_id: str) -> Exit:
        self.world.waiting += 1
        await self.connection.wait_closed()
        raise ttrpc.ConnectionClosed

    async def delete(self, exec_id: str) -> Exit:
        self.world.undone.append((self.bundle.id, self.bundle.path.exists()))
        if self.world.deletion is None:
            await anyio.sleep_forever()
        if isinstance(self.world.deletion, Exception):
            raise self.world.deletion
        assert self.world.deletion is not None
        return self.world.deletion

    async def delete_task(self) -> Exit:
        return await self.delete("")

    async def shutdown(self) -> None:
        self.world.asked.append(self.bundle.id)
        if not self.world.agrees:
            await anyio.sleep_forever()


@asynccontextmanager
async def managing(
    world: World, observer: Observer | None = None, limits: PoolLimits | None = None
) -> AsyncIterator[TaskManager]:
    settings = Settings(
        world.folder / "root",
        world.folder / "state",
        Timeouts(load=1.0, shutdown=0.2, cleanup=0.5, answer=0.2),
        limits or PoolLimits(),
    )
    async with anyio.create_task_group() as group:
        observing: Any = observer or Observer()
        yield TaskManager(Shims(settings, world.generation(), group), group, observing)
        group.cancel_scope.cancel()


def bundles(world: World) -> list[Path]:
    return list((world.folder / "state/ns").iterdir())
