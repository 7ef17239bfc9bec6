"""The daemon of a test."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from taskd.client import Client, Container, connect
from taskd.client.cleanup import Made, whatever_happens
from taskd.config import Config
from taskd.daemon import running
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.testing.clearing import clear
from taskd.testing.reaper import reaper

__all__ = ["Daemon", "daemon", "served"]


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
        async with served(config), connect(config.socket, namespace) as client:
            yield Daemon(folder, config.socket, client)


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[None]:
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
    """A daemon that serves; `client` is for all that its API has."""

    def __init__(self, folder: Path, socket: Path, client: Client) -> None:
        self.folder = folder
        """Temporary: what is in it goes with the daemon."""
        self.socket = socket
        """Where gRPC is served."""
        self.client = client

    def container(
        self,
        runtime: str,
        args: Sequence[str],
        *,
        id: str = "test",  # noqa: A002
        rootfs: Path | None = None,
        env: Sequence[str] = (),
        spec: Mapping[str, Any] | None = None,
        options: AnyMessage | None = None,
    ) -> Made[Container]:
        """A container that is created, but not started, with the host's network.

        `runtime` is a name (``io.example.thing.v1``) or the path of a shim's executable. `rootfs`
        is an empty folder by default; `spec` says more about the container, in the terms of the OCI
        runtime specification, and `options` is what the runtime takes beside it. Raises a class of
        `taskd.errors` with the shim's own words if it refuses. `client` makes others.
        """
        if rootfs is None:
            rootfs = self.folder / "rootfs"
            rootfs.mkdir(exist_ok=True)
        return self.client.create(
            rootfs,
            args,
            id=id,
            env=env,
            network="host",
            runtime=runtime,
            runtime_options=options,
            amend=spec or {},
        )
