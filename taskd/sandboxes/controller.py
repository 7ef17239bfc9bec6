"""The controller ``shim``: a sandbox is a process of a shim, in which containers are made.

Source: containerd's ``plugins/sandbox/controller.go``, whose errors these are, word by word.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import anyio
import betterproto2
from anyio.abc import TaskGroup

from taskd import ttrpc
from taskd.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    TaskdError,
    Unavailable,
    Unknown,
)
from taskd.events import Bus
from taskd.metadata import Sandbox, SandboxStore
from taskd.proto.containerd.events import (
    SandboxCreate,
    SandboxExit,
    SandboxStart,
    TaskDelete,
    TaskExit,
)
from taskd.runtime.binary import Bootstrap
from taskd.runtime.connection import Connection
from taskd.runtime.endings import DIED, NOT_STARTED, UNKNOWN
from taskd.runtime.locks import KeyedLock
from taskd.runtime.settings import Place
from taskd.runtime.shim import Shim, Tenant
from taskd.runtime.shim import State as ShimState
from taskd.runtime.shims import Shims
from taskd.runtime.types import CreateOptions, Exit, Key
from taskd.sandboxes.client import SandboxClient, State, Usage, Wanted
from taskd.wellknown import pack, timestamp

__all__ = ["Controller", "Wanted"]

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 30.0
"""For a shim to end a sandbox and what is in it; then it is killed."""
_ANSWER_SECONDS = 20.0
"""For a process to answer that goes on with it, and with many more."""
_GREETING_SECONDS = 1.0
"""Between two questions to a shim that does not answer."""


class _Running:
    """A sandbox that has been created, and its place in the process of its shim."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        tenant.ask = self._ask
        self.lost = False
        self.exit_told = False
        """Of its exit there has been an event."""
        self.end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        """What is known of its exit, once it has been taken down."""

    async def _ask(self, connection: Connection) -> None:
        await SandboxClient(connection, self.key).ping(timeout=_ANSWER_SECONDS)

    @property
    def key(self) -> Key:
        return self.tenant.key

    @property
    def api(self) -> SandboxClient:
        """Raises `Unavailable` if there is no connection to its process yet."""
        if (connection := self.tenant.shim.connection) is None:
            raise Unavailable(f"the shim of sandbox {self.key.id} does not answer")
        return SandboxClient(connection, self.key)


class Controller:
    """The sandboxes of all namespaces.

    `store` has their records, and `place` is where their bundles are. `group` owns what goes on in
    the background; `taken` says whether an id of a namespace is a task's. Every call about one that
    has not been created raises `NotFound` with nothing but its kind, unless it says otherwise.
    """

    def __init__(
        self,
        shims: Shims,
        place: Place,
        store: SandboxStore,
        bus: Bus,
        group: TaskGroup,
        taken: Callable[[str, str], bool],
    ) -> None:
        self._shims = shims
        self._place = place
        self._store = store
        self._bus = bus
        self._group = group
        self._taken = taken
        self._running: dict[Key, _Running] = {}
        self._busy: KeyedLock[Key] = KeyedLock()

    # --- lifecycle ------------------------------------------------------------------------

    async def create(self, namespace: str, sandbox: Sandbox, wanted: Wanted) -> None:
        """Start a shim, and make a sandbox in it; nothing is left behind if that fails.

        Raises `AlreadyExists`, `InvalidArgument` for a bad id, what `Shims.start` does, and the
        shim's error.
        """
        key = Key(namespace, sandbox.id)
        async with self._busy.hold(key):
            if key in self._running or self._taken(*key):
                raise AlreadyExists(f"sandbox {sandbox.id} already running")
            options = CreateOptions(
                sandbox.runtime_name, sandbox.spec, runtime_options=sandbox.runtime_options
            )
            try:
                tenant = await self._shims.start(key, options, place=self._place)
            except (InvalidArgument, AlreadyExists):
                raise
            except TaskdError as exc:
                raise exc.within(f"failed to start new shim for sandbox {sandbox.id}") from exc
            running = _Running(tenant)
            try:
                await running.api.create(str(tenant.bundle.path), wanted)
            except BaseException as exc:
                with anyio.CancelScope(shield=True):
                    await self._discard(running)
                if isinstance(exc, TaskdError):
                    raise exc.within(f"failed to create sandbox {sandbox.id}") from exc
                raise
            self._admit(running)
        await self._tell(key, "/sandboxes/create", SandboxCreate(sandbox_id=sandbox.id))

    async def start(self, namespace: str, sandbox_id: str) -> State:
        """One that does not start is taken down.

        One that has a record, and was not created, is created first: clients of containerd 1.7 and
        2.1 (`ctr sandboxes run`) say no more. Raises `Unknown` for any other.
        """
        key = Key(namespace, sandbox_id)
        if not self.has(*key):
            try:
                record = self._store.get(namespace, sandbox_id)
            except NotFound:
                raise Unknown(f'unable to find sandbox "{sandbox_id}"') from None
            await self.create(namespace, record, Wanted())
        running = self._get(key)
        try:
            state = await running.api.start()
        except TaskdError as exc:
            with anyio.CancelScope(shield=True):
                async with self._busy.hold(key):
                    if self._running.get(key) is running:
                        await self._discard(running)
            raise exc.within(f"failed to start sandbox {sandbox_id}") from exc
        await self._tell(key, "/sandboxes/start", SandboxStart(sandbox_id=sandbox_id))
        return state

    async def stop(self, namespace: str, sandbox_id: str, seconds: int) -> None:
        """End it and its containers; it is not removed. One that is not there has stopped."""
        running = self._running.get(Key(namespace, sandbox_id))
        if running is None:
            return
        try:
            await running.api.stop(seconds)
        except (NotFound, Unavailable, ttrpc.ConnectionClosed) as exc:
            # There are shims that end with their sandbox, before they answer.
            log.debug("stopping sandbox %s: %s", running.key, exc)
        except TaskdError as exc:
            raise exc.within("failed to stop sandbox") from exc

    async def shutdown(self, namespace: str, sandbox_id: str) -> None:
        """Remove it, and with it its shim, unless there are containers left in that."""
        key = Key(namespace, sandbox_id)
        async with self._busy.hold(key):
            running = self._get(key)
            try:
                with anyio.move_on_after(_SHUTDOWN_SECONDS):
                    await running.api.shutdown()
            except (ttrpc.ConnectionClosed, Unavailable) as exc:
                log.debug("shutting down sandbox %s: %s", key, exc)
            except TaskdError as exc:
                raise exc.within("failed to shutdown sandbox") from exc
            with anyio.CancelScope(shield=True):
                await self._take_down(running)

    # --- questions ------------------------------------------------------------------------

    async def wait(self, namespace: str, sandbox_id: str) -> Exit:
        """Its exit, however long that takes. Only if somebody waits, an event tells of it."""
        key = Key(namespace, sandbox_id)
        running = self._get(key)
        try:
            found = await running.api.wait()
        except ttrpc.ConnectionClosed:
            # What is known of it is found out while its shim is cleaned up after.
            found = await asyncio.shield(running.end)
        except TaskdError as exc:
            raise exc.within(f"failed to wait sandbox {sandbox_id}") from exc
        if not running.exit_told:
            running.exit_told = True
            event = SandboxExit(
                sandbox_id=sandbox_id,
                exit_status=found.status,
                exited_at=timestamp(found.exited_at),
            )
            await self._tell(key, "/sandboxes/exit", event)
        return found

    async def status(self, namespace: str, sandbox_id: str, *, verbose: bool) -> State | None:
        """None if it is not there, which is no error."""
        running = self._running.get(Key(namespace, sandbox_id))
        if running is None:
            return None
        try:
            return await running.api.status(verbose=verbose)
        except ttrpc.ConnectionClosed:
            return None
        except TaskdError as exc:
            raise exc.within(f"failed to query sandbox {sandbox_id} status") from exc

    async def platform(self, namespace: str, sandbox_id: str) -> tuple[str, str, str]:
        """Operating system, architecture, and its variant."""
        running = self._get(Key(namespace, sandbox_id))
        with _within("failed to get sandbox platform"):
            return await running.api.platform()

    async def metrics(self, namespace: str, sandbox_id: str) -> Usage | None:
        return await self._get(Key(namespace, sandbox_id)).api.metrics()

    def has(self, namespace: str, sandbox_id: str) -> bool:
        """Whether it has been created."""
        return Key(namespace, sandbox_id) in self._running

    def process(
        self, namespace: str, sandbox_id: str, address: str = "", version: int = 0
    ) -> Shim | Bootstrap | None:
        """The process in which the containers of a sandbox are made; None if nobody knows of it.

        It is what listens at `address` (``ttrpc+unix:///PATH``) and serves that `version` of the
        task API, if one is given, or else the sandbox's. Raises `NotFound` if that is not there,
        `Unknown` for a bad address.
        """
        try:
            self._store.get(namespace, sandbox_id)
        except NotFound:
            log.warning("sandbox %s/%s not found, maybe created from v1.x", namespace, sandbox_id)
            return None
        if address:
            return _bootstrap(address, version)
        running = self._running.get(Key(namespace, sandbox_id))
        if running is None or running.tenant.shim.ends:
            raise NotFound(f"can't find shim for sandbox {sandbox_id}")
        return running.tenant.shim

    # --- ends -----------------------------------------------------------------------------

    def _get(self, key: Key) -> _Running:
        try:
            return self._running[key]
        except KeyError:
            raise NotFound from None

    def _admit(self, running: _Running) -> None:
        self._running[running.key] = running
        running.tenant.lost = partial(self._lost, running)
        if running.tenant.shim.state is ShimState.GONE:
            self._lost(running)

    def _lost(self, running: _Running) -> None:
        """Its shim has died."""
        if not running.lost:
            running.lost = True
            self._group.start_soon(self._bury, running)

    async def _bury(self, running: _Running) -> None:
        async with self._busy.hold(running.key):
            if self._running.get(running.key) is running:
                await self._take_down(running)

    async def _discard(self, running: _Running) -> None:
        """Take down one that could not be made, or started."""
        with anyio.move_on_after(self._shims.timeouts.shutdown), suppress(TaskdError):
            await running.api.shutdown()
        await self._take_down(running)

    async def _take_down(self, running: _Running) -> None:
        tenant = running.tenant
        dead = running.lost or tenant.shim.state is ShimState.GONE
        found = await self._shims.take_down(tenant, DIED if dead else UNKNOWN)
        # 255: containerd's status for an exit that nobody saw.
        found = replace(found, pid=0) if found else Exit(0, 255, time.time_ns())
        self._running.pop(running.key, None)
        running.end.set_result(found)
        await self._tell_end(running.key, found)

    async def _tell_end(self, key: Key, found: Exit) -> None:
        """containerd tells of the shim's end as if it were a task's (``cleanupAfterDeadShim``)."""
        at = timestamp(found.exited_at)
        for topic, event in (
            (
                "/tasks/exit",
                TaskExit(container_id=key.id, id=key.id, exit_status=found.status, exited_at=at),
            ),
            (
                "/tasks/delete",
                TaskDelete(container_id=key.id, exit_status=found.status, exited_at=at),
            ),
        ):
            try:
                await self._tell(key, topic, event)
            except TaskdError as exc:
                log.error("telling of the end of sandbox %s: %s", key, exc)

    async def _tell(self, key: Key, topic: str, event: betterproto2.Message) -> None:
        await self._bus.publish(key.namespace, topic, pack(event))

    # --- finding --------------------------------------------------------------------------

    async def find(self) -> None:
        """Take note of the sandboxes of an earlier daemon, before the tasks in them are found."""
        _, tenants = await self._shims.survey(self._place)
        for tenant in tenants:
            if tenant.binary is None:
                self._group.start_soon(self._shims.take_down, tenant, NOT_STARTED)
            else:
                self._running[tenant.key] = _Running(tenant)

    def load(self) -> None:
        """Reconnect to them in the background, and clean up after those whose shims have died."""
        for running in self._running.values():
            self._group.start_soon(self._load, running)

    async def _load(self, running: _Running) -> None:
        try:
            await self._shims.reconnect(running.tenant)
        except TaskdError as exc:
            log.warning("the shim of sandbox %s is dead: %s", running.key, exc)
        self._admit(running)
        await self._greet(running)

    async def _greet(self, running: _Running) -> None:
        """Ask a shim of an earlier daemon until it answers."""
        shim = running.tenant.shim
        while not running.lost and not shim.ends:
            try:
                await running.api.ping(timeout=self._shims.timeouts.load)
            except ttrpc.ConnectionClosed:
                return  # it is lost, or the daemon ends
            except NotFound:
                log.warning("shim %s has no sandbox; ending it", running.key)
                await self._bury(running)
                return
            except TaskdError as exc:
                if shim.state is ShimState.SERVING:
                    shim.state = ShimState.SILENT
                    log.warning("the shim of sandbox %s does not answer: %s", running.key, exc)
                await anyio.sleep(_GREETING_SECONDS)
                continue
            if shim.state is ShimState.SILENT:
                shim.state = ShimState.SERVING
                log.warning("the shim of sandbox %s answers again", running.key)
            return


@contextmanager
def _within(doing: str) -> Iterator[None]:
    try:
        yield
    except TaskdError as exc:
        raise exc.within(doing) from exc


def _bootstrap(address: str, version: int) -> Bootstrap:
    protocol, plus, where = address.partition("+")
    if not plus:
        raise Unknown(
            "the scheme of sandbox address should be in  the form of "
            "<protocol>+<unix|vsock|tcp>, i.e. ttrpc+unix or grpc+vsock"
        )
    return Bootstrap(where, protocol, version)
