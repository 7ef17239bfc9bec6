"""Processes that hold many containers: started before they are needed, ended when they are not.

Which one a container goes to is `taskd.runtime.pool`'s affair; what is done here takes time. Each
process has a folder of its own, as a container has its bundle, by which a later daemon finds it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from taskd import folders, ttrpc
from taskd.codec import MalformedMessage, decode
from taskd.errors import TaskdError, Unknown
from taskd.proto.containerd.runc.v1 import Options
from taskd.runtime.bundle import Bundle
from taskd.runtime.generation import Generation
from taskd.runtime.pool import Member, Pool, PoolLimits
from taskd.runtime.shim import Shim, Tenant
from taskd.runtime.shim_log import ShimLog
from taskd.runtime.survey import Note, note
from taskd.runtime.types import CreateOptions

if TYPE_CHECKING:
    from taskd.runtime.shims import Shims

__all__ = ["Pools"]

log = logging.getLogger(__name__)

_FOLDER = ".pool"
"""Below the folder of bundles; no namespace has such a name."""
_GROUPS = "groups"
"""What a shim writes into its folder: annotations that put a container into another process."""
_MORTAL = "mortal"
"""What is in its folder if its containers end with it, whatever the daemon keeps for it."""
_AGAIN_SECONDS = 1.0
"""Between two questions to a process that does not answer."""
_TURN_SECONDS = 5.0
"""Between two looks at which processes have been idle for too long, at most."""


class Kind(NamedTuple):
    """Which containers may live together."""

    namespace: str
    path: Path
    """The shim's executable."""


class Traits(NamedTuple):
    """What a shim tells of its containers when a process is started for many."""

    groups: tuple[bytes, ...] = ()
    """Annotations of those that belong into another process."""
    mortal: bool = False
    """They end with their process, whatever is kept for it."""


class Process(Member):
    """One process of a pool, from when it is to be started."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = False
        self.scope = anyio.CancelScope()
        self.started = anyio.Event()
        # One of these two, once it is.
        self.shim: Shim | None = None
        self.error: TaskdError | None = None


class Pools:
    """The pools of the shims of one generation; `shims` decides who lives in one."""

    def __init__(
        self,
        shims: Shims,
        generation: Generation,
        state: Path,
        limits: PoolLimits,
        group: TaskGroup,
    ) -> None:
        self._shims = shims
        self._generation = generation
        self._folder = state / _FOLDER
        self._limits = limits
        self._group = group
        self._pools: dict[Kind, Pool[Process]] = {}
        self._processes: dict[Shim, tuple[Pool[Process], Process]] = {}
        self._tending = False
        # By executables, as far as they have told.
        self._traits: dict[Path, Traits] = {}

    async def place(self, tenant: Tenant, path: Path, options: CreateOptions) -> bool:
        """Move a tenant into a process of a pool; False if it belongs into another one.

        What does not answer is passed over. Raises `Unknown` if a process cannot be started.
        """
        if self._limits.size <= 1 or not self._generation.pools(path) or _has_cgroup(options):
            return False
        spec = options.spec.value if options.spec is not None else b""
        if not self._may_share(path, spec):
            return False
        kind = Kind(tenant.key.namespace, path)
        pool = self._pools.setdefault(kind, Pool(self._limits, Process))
        self._tend()
        while True:
            process = pool.take()
            placed = False
            try:
                shim = await self._ready(kind, pool, process)
                if shim is not None:
                    if not self._may_share(path, spec):
                        process.retired = self._is_unfit(path)
                        return False
                    tenant.move(shim)
                    placed = True
                    break
            finally:
                if not placed:
                    pool.leave(process, time.monotonic())
                    self._sweep(pool)
        if (spare := pool.spare(time.monotonic())) is not None:
            self._begin(kind, pool, spare)
        return True

    def _may_share(self, path: Path, spec: bytes) -> bool:
        """Whether a container may live in a pool, as far as its shim has told."""
        groups = self._traits.get(path, Traits()).groups
        return not self._is_unfit(path) and not any(name in spec for name in groups)

    def _is_unfit(self, path: Path) -> bool:
        return self._limits.of_survivors and self._traits.get(path, Traits()).mortal

    async def _ready(self, kind: Kind, pool: Pool[Process], process: Process) -> Shim | None:
        """The process as it serves; None if it does not. Raises `Unknown` if it does not start."""
        if not process.started.is_set():
            self._begin(kind, pool, process)
            await process.started.wait()
            if process.error is not None:
                raise process.error
        shim = process.shim
        assert shim is not None
        try:
            await self._shims.connect(shim)
        except TaskdError:
            pool.remove(process)
            return None
        if await self._answers(shim) and not shim.ends:
            return shim
        if not process.silent:
            process.silent = True
            log.warning("shim %s does not answer: it gets nothing new", shim.name)
            self._group.start_soon(self._ask_again, process)
        return None

    async def _answers(self, shim: Shim) -> bool:
        assert shim.home is not None
        with anyio.move_on_after(self._shims.timeouts.answer):
            try:
                await self._shims.api(shim, shim.home).connect()
            except ttrpc.ConnectionClosed:
                return False
            except TaskdError:
                pass
            return True
        return False

    async def _ask_again(self, process: Process) -> None:
        shim = process.shim
        assert shim is not None
        while not shim.ends:
            await anyio.sleep(_AGAIN_SECONDS)
            if await self._answers(shim):
                log.warning("shim %s answers again", shim.name)
                process.silent = False
                return

    # --- starting -------------------------------------------------------------------------

    def _begin(self, kind: Kind, pool: Pool[Process], process: Process) -> None:
        """Start a process, for all who wait for it, whoever of them goes away."""
        if not process.begun:
            process.begun = True
            self._group.start_soon(self._start, kind, pool, process)

    async def _start(self, kind: Kind, pool: Pool[Process], process: Process) -> None:
        try:
            with process.scope:
                process.shim = await self._started(kind)
            if process.shim is None:
                raise Unknown("start failed: the daemon ends")
        except TaskdError as exc:
            log.warning("a shim process for %s cannot be started: %s", kind.namespace, exc)
            process.error = exc
            pool.remove(process)
        else:
            self._processes[process.shim] = pool, process
            process.shim.landlord = self
        finally:
            process.started.set()

    async def _started(self, kind: Kind) -> Shim:
        name = f"pool-{secrets.token_hex(8)}"
        home = Bundle(kind.namespace, name, self._folder / kind.namespace / name)
        shim: Shim | None = None
        shim_log = None
        try:
            await to_thread.run_sync(_furnish, home)
            shim_log = ShimLog(home)
            binary = self._generation.binary(kind.path, home)
            with anyio.fail_after(self._shims.timeouts.start):
                bootstrap = await binary.start(CreateOptions(str(kind.path)), group=name)
            shim = self._shims.listener(bootstrap, home)
            shim.home, shim.log = home, shim_log
            await self._shims.connect(shim)
            await to_thread.run_sync(note, home, kind.path, bootstrap)
            self._traits[kind.path] = await to_thread.run_sync(_traits, home)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                if shim is not None:
                    await self._shims.end(shim, asks=False)
                else:
                    if shim_log is not None:
                        shim_log.close()
                    await self._clear(home)
            if isinstance(exc, TimeoutError):
                words = f"start failed: no address in {self._shims.timeouts.start} s"
                raise Unknown(words) from None
            if isinstance(exc, OSError):
                raise Unknown(str(exc)) from exc
            if isinstance(exc, TaskdError):
                raise exc.within("start failed") from exc
            raise
        return shim

    # --- ending ---------------------------------------------------------------------------

    def vacated(self, shim: Shim) -> None:
        """A tenant has left."""
        pool, process = self._processes[shim]
        pool.leave(process, time.monotonic())
        self._sweep(pool)

    def died(self, shim: Shim) -> None:
        if shim in self._processes:
            pool, process = self._processes.pop(shim)
            pool.remove(process)

    def shut(self, shim: Shim) -> None:
        """Put nothing into it any more, and end it if nothing is in it."""
        if shim in self._processes:
            pool, process = self._processes[shim]
            process.shut = True
            self._sweep(pool)

    def reopen(self, shim: Shim) -> None:
        """Put more into it again."""
        if shim in self._processes:
            _, process = self._processes[shim]
            process.shut = False

    def _sweep(self, pool: Pool[Process]) -> None:
        for process in pool.ending(time.monotonic()):
            self._group.start_soon(self._end, process)

    async def _end(self, process: Process) -> None:
        if not process.begun:
            return
        await process.started.wait()
        if process.shim is not None and not process.shim.ends:
            log.debug("shim %s is idle; ending it", process.shim.name)
            self._processes.pop(process.shim, None)
            await self._shims.end(process.shim, asks=not process.silent)

    def _tend(self) -> None:
        if not self._tending:
            self._tending = True
            self._group.start_soon(self._keep_tending)

    async def _keep_tending(self) -> None:
        while any(pool.members for pool in self._pools.values()):
            await anyio.sleep(min(max(self._limits.idle / 2, 0.1), _TURN_SECONDS))
            for pool in self._pools.values():
                self._sweep(pool)
        self._tending = False

    async def close(self) -> None:
        """End what has no tenants: there is nothing in it for a later daemon to find."""
        for process in [each for pool in self._pools.values() for each in pool.members]:
            if process.begun and not process.started.is_set():
                process.scope.cancel()
                await process.started.wait()
        async with anyio.create_task_group() as group:
            for pool, process in list(self._processes.values()):
                if process.shim is not None and not process.shim.tenants:
                    pool.remove(process)
                    group.start_soon(self._end, process)

    # --- finding --------------------------------------------------------------------------

    async def find(self) -> None:
        """Take note of the processes of an earlier daemon, before their tenants are found."""
        for home, noted in await to_thread.run_sync(_homes, self._folder):
            process = Process()
            process.begun = True
            process.started.set()
            try:
                path = self._generation.resolve(noted.binary())
                shim = process.shim = self._shims.listener(noted.bootstrap(), home)
            except (OSError, ValueError, TaskdError):
                log.warning("shim process %s is half made; removing it", home.path)
                self._group.start_soon(self._clear, home)
                continue
            shim.home, shim.landlord, shim.log = home, self, ShimLog(home)
            self._traits[path] = await to_thread.run_sync(_traits, home)
            kind = Kind(home.namespace, path)
            pool = self._pools.setdefault(kind, Pool(self._limits, Process))
            process.retired = self._limits.size <= 1 or self._is_unfit(path)
            self._processes[shim] = pool, process

    async def adopt(self) -> None:
        """Take those into their pools, once their tenants are known."""
        for shim, (pool, process) in self._processes.items():
            pool.adopt(process, len(shim.tenants), time.monotonic())
            self._group.start_soon(self._reconnect, shim)
        self._tend()

    async def _reconnect(self, shim: Shim) -> None:
        try:
            await self._shims.connect(shim)
        except TaskdError as exc:
            log.warning("shim %s is dead: %s", shim.name, exc)
            self.died(shim)
            if not shim.tenants:
                await self._shims.end(shim, asks=False)

    async def _clear(self, home: Bundle) -> None:
        """Take down what there is of a process that was being started."""
        shim = self._shims.unstarted(home)
        with suppress(OSError):
            shim.socket = Path((home.path / "address").read_text().removeprefix("unix://"))
        shim.home = home
        await self._shims.end(shim, asks=False)


def _has_cgroup(options: CreateOptions) -> bool:
    """Whether its shim is to be in a cgroup that the container names."""
    given = options.options
    if given is None or given.type_url.rpartition("/")[2] != "containerd.runc.v1.Options":
        return False
    try:
        return bool(decode(Options, given.value).shim_cgroup)
    except MalformedMessage:
        return False  # the shim will say so


def _furnish(home: Bundle) -> None:
    """Raises OSError."""
    folders.make(home.path, 0o711)
    home.path.chmod(0o700)
    (home.path / "config.json").write_text("{}")


def _traits(home: Bundle) -> Traits:
    """What a process has written into its folder."""
    groups = b""
    with suppress(OSError):
        groups = (home.path / _GROUPS).read_bytes()
    return Traits(tuple(groups.split()), (home.path / _MORTAL).exists())


def _homes(folder: Path) -> Iterable[tuple[Bundle, Note]]:
    found = []
    for path in folder.glob("*/*"):
        home = Bundle(path.parent.name, path.name.lstrip("."), path)
        found.append((home, Note(home)))
    return found
