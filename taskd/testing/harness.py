"""What the pytest plugin stands on: a daemon, and a client on a thread of its own."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Unpack

import anyio
from anyio.from_thread import BlockingPortal

from taskd.client import Client, Options, address, connect, sync
from taskd.client.cleanup import Made
from taskd.client.faces import Awaitable, Blocking
from taskd.errors import TaskdError
from taskd.testing.clearing import clear
from taskd.testing.contained import Contained, Ready
from taskd.testing.event_log import EventLog
from taskd.testing.reaper import reaper
from taskd.testing.server import Server

__all__ = ["Factory", "Harness", "harness"]


class Harness:
    """A daemon, and a client of it in a namespace that nobody else has."""

    def __init__(
        self,
        portal: BlockingPortal,
        client: Client,
        server: Server | None,
        runtime: str,
        empty: Path,
    ) -> None:
        self.portal = portal
        self.inner = client
        self.server = server
        """None if the daemon is somebody else's."""
        self.runtime = runtime
        self.events = EventLog()
        self.client = Blocking(portal, client)
        """The client as plain functions have it."""
        self.empty = empty
        """A folder with nothing in it, for runtimes that have no use for a root filesystem."""
        self.aio = Awaitable(portal, client)
        """The client as coroutines have it, in whatever loop."""

    @property
    def address(self) -> Path:
        """The daemon's socket."""
        return self.inner.address

    @property
    def namespace(self) -> str:
        return self.inner.namespace

    @property
    def log(self) -> str:
        """What the daemon has written; nothing if it is somebody else's."""
        return self.server.log.read_text(errors="replace") if self.server else ""

    def crash(self) -> None:
        """Kill the daemon; containers go on. Calls wait until it is there again: `start`."""
        self._own().crash()

    def stop(self) -> None:
        """End the daemon; containers go on."""
        self._own().stop()

    def start(self) -> None:
        """Start the daemon again, with all that it had."""
        self._own().start()

    def restart(self) -> None:
        """End it, and start it again."""
        self._own().restart()

    def revive(self) -> None:
        """Have the daemon there again, if a test has left it away, or it has gone by itself."""
        if self.server is not None and not self.server.is_running:
            self.server.start()

    def _own(self) -> Server:
        if self.server is None:
            raise RuntimeError("the daemon at --taskd-address is not ours to end")
        return self.server


class Factory:
    """Makes containers for one test, which are gone when that has ended."""

    def __init__(self, harness: Harness, timeout: float | None) -> None:
        self._harness = harness
        self._timeout = timeout
        self._watches: list[asyncio.Task[None]] = []
        self.events = harness.events.from_now_on()
        self.made: list[Contained] = []

    def __call__(
        self,
        source: str | Path | None = None,
        args: Sequence[str] = (),
        *,
        ready: Ready | None = None,
        ready_timeout: float = 30.0,
        timeout: float | None = None,
        start: bool = True,
        **options: Unpack[Options],
    ) -> Made[Contained]:
        """A container that has been started, and is `ready`: see `taskd.testing.ready`.

        `source` and the options are those of `Client.run`; a runtime that has no use for a root
        filesystem needs none. After `timeout` seconds (``--taskd-timeout``) it is killed, while the
        test goes on.
        """

        async def make() -> Contained:
            rootfs = source if source is not None else self._harness.empty
            chosen = dict(options)
            if self._harness.runtime:
                chosen.setdefault("runtime", self._harness.runtime)
            container = await self._harness.inner.create(rootfs, args, **chosen)  # type: ignore[arg-type]
            made = Contained(self._harness.inner, container, self.events)
            self.made.append(made)
            if start:
                await container.start()
            limit = timeout if timeout is not None else self._timeout
            if limit:
                self._watches.append(asyncio.create_task(_end_after(limit, made)))
            if ready is not None:
                await made.wait_until(ready, ready_timeout)
            return made

        return Made(make)

    async def describe(self) -> list[tuple[str, str]]:
        """Names and contents of the sections of a report."""
        return [(f"container {made.id}", await made.describe()) for made in self.made]

    async def aclose(self) -> None:
        """End and remove all that there is."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        ends = [made.leave() for made in self.made]
        self.made.clear()
        for found in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found


async def _end_after(seconds: float, made: Contained) -> None:
    await anyio.sleep(seconds)
    with suppress(TaskdError):  # it has ended already
        await made.container.kill()
        made.timed_out = seconds


@contextmanager
def harness(
    server: Server | None, given: str | None = None, runtime: str = ""
) -> Iterator[Harness]:
    """A client of the `server` that has been launched, or of the daemon at the `given` address.

    Whatever ends this process, nothing is left of its containers.
    """
    namespace = f"pytest-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        if server is not None:
            socket = server.address
            server.wait_until_it_serves()
        else:
            socket = address.find(given)
            stack.enter_context(reaper(socket, namespace))
        portal = stack.enter_context(sync.portal())
        stack.callback(portal.call, clear, socket, "" if server else namespace)
        client = stack.enter_context(
            portal.wrap_async_context_manager(portal.call(_client, socket, namespace))
        )
        # In the daemon's folder it goes with that, whatever ends us.
        inside = server.folder if server is not None else None
        temporary = tempfile.TemporaryDirectory(prefix="taskd-empty-", dir=inside)
        empty = Path(stack.enter_context(temporary))
        made = Harness(portal, client, server, runtime, empty)
        recording, _ = portal.start_task(made.events.record, client)
        stack.callback(recording.cancel)
        stack.callback(made.revive)
        yield made


async def _client(socket: Path, namespace: str) -> Client:
    return connect(socket, namespace, patience=60)
