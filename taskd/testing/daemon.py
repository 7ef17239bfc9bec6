"""The daemon of a test."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from taskd.config import Config
from taskd.daemon import running
from taskd.grpc.channel import Channel
from taskd.proto.containerd.services.tasks.v1 import TasksStub
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.testing import spec as default
from taskd.testing.clearing import clear, whatever_happens
from taskd.testing.container import Container, container
from taskd.testing.reaper import reaper

__all__ = ["Daemon", "daemon"]


@asynccontextmanager
async def daemon(namespace: str | None = None) -> AsyncIterator[Daemon]:
    """A taskd in this process, on a temporary folder, and a client that speaks in `namespace`.

    Without one it is a namespace that nobody else has: runc keeps the state of its containers by
    namespace and id, for all daemons of a machine. Raises what `taskd.daemon.running` raises, and
    what is raised within, as it is.
    """
    if namespace is None:
        namespace = f"testing-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="taskd-") as name, reaper(Path(name)):
        folder = Path(name)
        config = Config(root=folder / "root", state=folder / "state")
        async with _served(config), Channel(config.socket, namespace=namespace) as channel:
            yield Daemon(folder, config.socket, channel, namespace)


@asynccontextmanager
async def _served(config: Config) -> AsyncIterator[None]:
    """A daemon in a task of its own, so that it does not end with a scope of the caller's.

    What the caller has left running can be asked of it until the end.
    """
    stop = asyncio.Event()
    started = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with running(config):
            started.set_result(None)
            await stop.wait()
            await clear(config.socket)

    async def end() -> None:
        stop.set()
        await serving

    serving = asyncio.create_task(serve())
    try:
        await asyncio.wait([serving, started], return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            yield
    finally:
        await whatever_happens(end())


class Daemon:
    """A daemon that serves; `channel` is for whatever else its API has."""

    def __init__(self, folder: Path, socket: Path, channel: Channel, namespace: str) -> None:
        self.folder = folder
        """Temporary: what is in it goes with the daemon."""
        self.socket = socket
        """Where gRPC is served."""
        self.channel = channel
        self.namespace = namespace
        self.tasks = TasksStub(channel)

    def container(
        self,
        runtime: str,
        args: Sequence[str],
        *,
        id: str = "test",  # noqa: A002
        rootfs: Path | None = None,
        env: Sequence[str] = default.ENV,
        spec: Mapping[str, Any] | None = None,
        options: AnyMessage | None = None,
    ) -> AbstractAsyncContextManager[Container]:
        """A container that is created, but not started.

        `runtime` is a name (``io.example.thing.v1``) or the path of a shim's executable. `rootfs`
        is an empty folder by default; `spec` says more about the container, in the terms of the OCI
        runtime specification, and `options` is what the runtime takes beside it. Raises GRPCError
        with the shim's own words if it refuses.
        """
        if rootfs is None:
            rootfs = self.folder / "rootfs"
            rootfs.mkdir(exist_ok=True)
        process = default.process(args, env)
        document = default.container(process, rootfs, f"/{self.namespace}/{id}")
        return container(
            self.channel, self.folder, id, runtime, default.merged(document, spec or {}), options
        )
