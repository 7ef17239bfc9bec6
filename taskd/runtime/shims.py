"""Processes of shims: made, found, shared, and taken down; what lives in them is others' affair.

Sources: containerd's ``runtime/v2/shim_manager.go``, ``shim.go`` and ``shim_load.go``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

import taskd
from taskd import ttrpc
from taskd.errors import TaskdError, Unavailable, Unimplemented, Unknown, of_system
from taskd.runtime import remains
from taskd.runtime.binary import NEWEST_VERSION, Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import PROTOCOLS, connect
from taskd.runtime.endings import NOT_STARTED, Delete, Ending
from taskd.runtime.features import needs_idmapped_mounts, require_idmapped_mounts
from taskd.runtime.generation import Binary, Generation, TaskApi
from taskd.runtime.line import Line
from taskd.runtime.locks import KeyedLock
from taskd.runtime.pools import Pools
from taskd.runtime.settings import Place, Settings
from taskd.runtime.shim import Shim, State, Tenant
from taskd.runtime.shim_log import ShimLog
from taskd.runtime.spawn import kill_group
from taskd.runtime.survey import Note, note, survey
from taskd.runtime.survival import Heir, Survival
from taskd.runtime.types import CreateOptions, Exit, Key

__all__ = ["Shims"]

log = logging.getLogger(__name__)

_STARTS = 3
"""Times that `start` is run if each finds a process that ends just then."""
_HEIRS = 10
"""Processes that are tried one after the other, to go on where one has died: they may be killed
as well.
"""
_DEATH_SECONDS = (0.02, 0.1, 0.5)
"""Pauses between looks at whether a shim that was killed has let go of its socket."""
_SWEEP_SECONDS = (0.2, 1.0, 5.0)
"""The same for one that has agreed to end, and for a bundle that could not be removed."""


class Shims:
    """The processes of all shims of one generation, by the address at which they listen.

    `group` owns what goes on in the background: a watch on each connection, and what is left to be
    swept.
    """

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        group: TaskGroup,
        survival: Survival | None = None,
    ) -> None:
        """With `survival`, what lives in a process that dies may go on in another."""
        self.timeouts = settings.timeouts
        self._settings = settings
        self._generation = generation
        self._group = group
        self._survival = survival
        # The daemon ends, and they go on.
        self._closing = False
        self._shims: dict[str, Shim] = {}
        # One connection a process.
        self._addresses: KeyedLock[str] = KeyedLock()
        # A bundle is not swept away while another of its name is being made.
        self._bundles: KeyedLock[Key] = KeyedLock()
        self._pools = Pools(self, generation, settings.state, settings.limits, group)

    def all(self) -> list[Shim]:
        """All processes that there are."""
        return list(self._shims.values())

    def api(self, shim: Shim, bundle: Bundle) -> TaskApi:
        """To speak of a bundle to a process to which there is a connection."""
        assert shim.connection is not None
        assert shim.bootstrap is not None
        return self._generation.task(shim.connection, bundle, shim.bootstrap)

    async def installed(self, shim: Shim) -> str:
        """Version of taskd that a fresh process in its stead would run; empty if it is not told.

        Raises `Unknown` if its executable cannot be run.
        """
        for tenant in shim.tenants.values():
            if tenant.binary is not None:
                return await self._generation.version(tenant.binary.path)
        return taskd.__version__ if shim.home is not None else ""

    async def close(self) -> None:
        """Close all connections; the processes and what lives in them go on."""
        self._closing = True
        await self._pools.close()
        for shim in list(self._shims.values()):
            await shim.disconnect()

    # --- making ---------------------------------------------------------------------------

    async def start(
        self,
        key: Key,
        options: CreateOptions,
        *,
        place: Place | None = None,
        within: Shim | Bootstrap | None = None,
    ) -> Tenant:
        """Make a bundle, and run a shim's ``start`` for it; a tenant of the process it names.

        With `within` nothing is run: the tenant moves into that process, which is not ours if it is
        only known how to reach it. The bundle is among those of tasks, unless there is a `place`.
        Raises `AlreadyExists` if there is such a bundle, `InvalidArgument` for a bad id or spec,
        `Unknown` in the shim's own words if it does not start. Nothing is left behind then, nor if
        the caller is cancelled.
        """
        spec = options.spec.value if options.spec is not None else None if place else b""
        root, state = place or (self._settings.root, self._settings.state)
        async with self._bundles.hold(key):
            try:
                bundle = await to_thread.run_sync(
                    Bundle.create, state, root, *key, spec, options.sandbox
                )
            except OSError as exc:
                raise of_system(exc).within(f"bundle of {key}") from exc
            tenant = Tenant(bundle, self.unstarted(bundle))
            try:
                path = self._executable(options, within)
                binary = tenant.binary = self._generation.binary(path, bundle)
                if needs_idmapped_mounts(spec or b""):
                    await require_idmapped_mounts(binary, options, self.timeouts.start)
                if within is not None:
                    tenant.log = ShimLog(bundle)
                    try:
                        await self._join(tenant, within)
                    except TaskdError as exc:
                        doing = f'failed to load sandbox task "{options.sandbox}"'
                        raise exc.within(doing) from exc
                elif place is not None or not await self._pools.place(tenant, path, options):
                    tenant.log = ShimLog(bundle)
                    await self._enter(tenant, binary, options)
                assert tenant.shim.bootstrap is not None
                await to_thread.run_sync(note, bundle, path, tenant.shim.bootstrap)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self.take_down(tenant, NOT_STARTED)
                raise
            return tenant

    def _executable(self, options: CreateOptions, within: Shim | Bootstrap | None) -> Path:
        """The shim's: that of the sandbox, if the container is in one."""
        if isinstance(within, Shim):
            for tenant in within.tenants.values():
                if tenant.binary is not None:
                    return tenant.binary.path
        try:
            return self._generation.resolve(options.runtime)
        except TaskdError as exc:
            raise exc.within("failed to resolve runtime path") from exc

    def unstarted(self, bundle: Bundle) -> Shim:
        """What there may be of a process of which nothing is known yet."""
        socket = self._generation.socket(bundle)
        return Shim(f"unix://{socket}", socket, State.GONE)

    async def _enter(self, tenant: Tenant, binary: Binary, options: CreateOptions) -> None:
        """Run ``start``, and move the tenant into the process that it names."""
        own = tenant.shim.address
        try:
            with anyio.fail_after(self.timeouts.start):
                for left in reversed(range(_STARTS)):
                    bootstrap = await binary.start(options)
                    try:
                        await self._move(tenant, bootstrap)
                    except BaseException as exc:
                        if tenant.shim.state is State.GONE:
                            # What `start` has left behind is nobody's.
                            kill_group(bootstrap.group)
                        # One that is shared may have ended meanwhile, with its last tenant.
                        if not isinstance(exc, TaskdError) or bootstrap.address == own or not left:
                            raise
                        self._step_back(tenant)
                    else:
                        break
        except TimeoutError:
            raise Unknown(f"start failed: no address in {self.timeouts.start} s") from None
        except TaskdError as exc:
            raise exc.within("start failed") from exc

    async def _join(self, tenant: Tenant, within: Shim | Bootstrap) -> Bootstrap:
        """Move the tenant into a process that there is. Raises `Unknown` if it has gone."""
        tenant.sandboxed = True
        if isinstance(within, Bootstrap):
            if within.version > NEWEST_VERSION:
                raise Unimplemented(f"unsupported shim version ({within.version})")
            if within.protocol.lower() not in PROTOCOLS:
                raise Unknown(f'unexpected protocol: "{within.protocol}"')
            shim = self._shims.get(within.address)
            if shim is None:
                shim = self.listener(within, tenant.bundle)
                shim.foreign = True
            within = shim
        if within.ends or within.bootstrap is None:
            raise Unknown(f"connecting to {within.address}: it is gone")
        tenant.move(within)
        await self.connect(within)
        return within.bootstrap

    async def _move(self, tenant: Tenant, bootstrap: Bootstrap) -> None:
        """Raises `Unknown` if there is nobody to connect to."""
        while (shim := self._shims.get(bootstrap.address)) is not None and shim.ends:
            # The last one out, and the next one in, exclude each other.
            await shim.gone.wait()
        if shim is None:
            shim = self.listener(bootstrap, tenant.bundle)
            shim.log = tenant.log
        tenant.move(shim)
        await self.connect(shim)

    def _step_back(self, tenant: Tenant) -> None:
        """Out of a process that is no more, before there is another one."""
        shim = tenant.shim
        tenant.move(self.unstarted(tenant.bundle))
        if not shim.tenants:
            self._forget(shim)

    def listener(self, bootstrap: Bootstrap, bundle: Bundle) -> Shim:
        """The process at an address, to which there is no connection yet."""
        socket = bootstrap.socket or self._generation.socket(bundle)
        shim = self._shims[bootstrap.address] = Shim(bootstrap.address, socket, State.SILENT)
        shim.bootstrap = bootstrap
        return shim

    async def connect(self, shim: Shim) -> None:
        """Connect to a process, unless that has been done. Raises `Unknown`; then it is gone."""
        async with self._addresses.hold(shim.address):
            if shim.connection is not None:
                return
            if shim.bootstrap is None or shim.state is State.GONE:
                raise Unknown(f"connecting to {shim.address}: it is gone")
            try:
                connection = await connect(shim.bootstrap, timeout=self.timeouts.load)
            except TaskdError as exc:
                if not self._survivors(shim):
                    shim.state = State.GONE
                    raise
                log.warning("shim %s has died: %s", shim.name, exc)
                connection = None
            except BaseException:
                shim.state = State.GONE
                raise
            shim.connection = Line(connection)
            shim.state = State.SERVING
            self._hold(shim)
            self._group.start_soon(self._watch, shim)

    def _hold(self, shim: Shim) -> None:
        bundle = shim.home or next(iter(shim.tenants.values())).bundle
        ask = self.api(shim, bundle).connect
        self._group.start_soon(shim.hold, ask, self.timeouts.load)

    async def _watch(self, shim: Shim) -> None:
        """Wait for the connection to end; if nobody ended it, the process died."""
        assert shim.connection is not None
        while True:
            await shim.connection.wait_lost()
            if shim.state is State.ENDING:
                await shim.connection.aclose()  # nobody goes on: who waits for it need not
                return
            if (heir := await self._heir(shim)) is None:
                break
            if shim.ends:
                await self._disinherit(shim, heir)
                return
            _lose([*heir.lost, *self._mortal(shim)])
            shim.go_on(heir.bootstrap, heir.connection, heir.first)
            self._hold(shim)
        if not shim.ends:
            shim.state = State.GONE
            log.warning("shim %s disconnected; cleaning up after it", shim.name)
            if shim.landlord is not None:
                shim.landlord.died(shim)
            if shim.home is not None and not shim.tenants:
                await self.end(shim, asks=False)
            _lose(list(shim.tenants.values()))
        await shim.connection.aclose()

    def _survivors(self, shim: Shim) -> list[Tenant]:
        return [] if self._survival is None else self._survival.of(shim.tenants.values())

    def _mortal(self, shim: Shim) -> list[Tenant]:
        """Those of one that is dead with whom nobody can go on; not those that are being made."""
        return [each for each in shim.tenants.values() if each not in self._survivors(shim)]

    async def _heir(self, shim: Shim) -> Heir | None:
        """Another process that goes on where this one has died, if any of its tenants survives."""
        if self._survival is None or not (tenants := self._survivors(shim)):
            return None
        if shim.dismissed:
            log.info("shim %s has left; another goes on where it has been", shim.name)
        else:
            log.warning("shim %s disconnected; another goes on where it has been", shim.name)
        for _ in range(_HEIRS):
            await remains.kill(shim, self.timeouts.shutdown)
            shim.killed = False
            try:
                with anyio.fail_after(self.timeouts.start):
                    return await self._survival.heir(shim.home, tenants, self._generation)
            except (TaskdError, TimeoutError, OSError) as exc:
                log.error("going on where shim %s has been: %s", shim.name, exc)
        return None

    async def _disinherit(self, shim: Shim, heir: Heir) -> None:
        """The last tenant has left while another process was to go on with it."""
        assert shim.connection is not None
        await heir.connection.aclose()
        await shim.connection.aclose()
        if not self._closing:
            await remains.kill(shim, self.timeouts.shutdown)
            await self._clear(shim, ends=False)

    # --- finding --------------------------------------------------------------------------

    async def survey(self, place: Place | None = None) -> tuple[set[Key], list[Tenant]]:
        """What an earlier daemon has left: keys of all bundles, and those that are somebody's.

        All are known as tenants before there is a connection to any process, so that none is ended
        in which others live. Entries that are no bundles are left alone.
        """
        root, state = place or (self._settings.root, self._settings.state)
        if place is None:
            await self._pools.find()
        found = await to_thread.run_sync(survey, state, root)
        tenants = [self._found(bundle, noted) for bundle, noted in found]
        if place is None:
            await self._pools.adopt()
        return {bundle.key for bundle, _ in found}, [each for each in tenants if each is not None]

    async def reconnect(self, tenant: Tenant) -> None:
        """Connect to what has been found. Raises `Unknown`; then the process is gone."""
        await self.connect(tenant.shim)
        if tenant.shim.log is None:
            # Which of them has the log of their process is not known.
            tenant.log = ShimLog(tenant.bundle)

    def _found(self, bundle: Bundle, noted: Note) -> Tenant | None:
        """A tenant without a `binary` is one whose ``start`` was cut short."""
        try:
            path = self._generation.resolve(noted.binary())
        except FileNotFoundError:
            if bundle.work.is_symlink() or (bundle.path / "config.json").exists():
                log.warning("bundle %s is half made; removing it", bundle.path)
                return Tenant(bundle, self.unstarted(bundle))
            log.error("%s is no bundle; it is left alone", bundle.path)
            return None
        except (OSError, ValueError, TaskdError) as exc:
            log.error("bundle %s is left alone: %s", bundle.path, exc)
            return None
        try:
            bootstrap = noted.bootstrap()
        except (OSError, ValueError) as exc:
            log.warning("shim %s is dead: %s", bundle.key, exc)
            shim = self.unstarted(bundle)
        else:
            shim = self._shims.get(bootstrap.address) or self.listener(bootstrap, bundle)
            # Sandboxes have been found before.
            shim.foreign |= noted.in_sandbox and not shim.tenants and shim.home is None
        tenant = Tenant(bundle, shim)
        tenant.sandboxed = noted.in_sandbox
        tenant.binary = self._generation.binary(path, bundle)
        return tenant

    # --- ending ---------------------------------------------------------------------------

    async def take_down(self, tenant: Tenant, ending: Ending) -> Exit | None:
        """Let a tenant leave, and remove its bundle; with the last one, the process and its socket.

        Returns what the shim's ``delete`` tells of the exit, if it is run. Each step is taken
        whatever became of the others.
        """
        shim = tenant.shim
        if shim.bootstrap is None and (other := self._shims.get(shim.address)) is not None:
            # It has not got as far as to have a process of its own: who listens is another's.
            tenant.move(other)
            shim = other
        last = shim.leave(tenant)
        if shim.state is State.GONE:
            # What a shim runs ends with it, and is not to make what `delete` has just removed.
            await remains.kill(shim, self.timeouts.shutdown)
        agreed = ending.asks
        found = None
        # A task that is deleted already need not wait for its process, nor that for the task.
        async with anyio.create_task_group() as both:
            if ending.delete is Delete.AS_USUAL:
                assert tenant.binary is not None
                # As containerd does, though not for those in sandboxes.
                if tenant.binary.deletes_after_shutdown and not tenant.sandboxed:
                    both.start_soon(remains.clean_up, tenant.binary, self.timeouts.cleanup)
            if last:
                agreed = await self._end(shim, tenant.bundle, ending)
        cleans = ending.delete is Delete.ALWAYS or (
            ending.delete is Delete.UNLESS_AGREED and not agreed
        )
        if cleans and not shim.foreign:
            assert tenant.binary is not None
            found = await remains.clean_up(tenant.binary, self.timeouts.cleanup)
        await self.delete_bundle(tenant.bundle)
        if last:
            await self._clear(shim, ends=agreed and ending.trusts)
        elif shim.landlord is not None and not shim.ends:
            shim.landlord.vacated(shim)
        return found

    async def end(self, shim: Shim, *, asks: bool) -> None:
        """End a process that has a home, and no tenants."""
        assert shim.home is not None
        if shim.state is not State.GONE:
            shim.state = State.ENDING
        agreed = await self._end(shim, shim.home, Ending(asks, True, Delete.NEVER))
        await self._clear(shim, ends=agreed)

    async def _end(self, shim: Shim, bundle: Bundle, ending: Ending) -> bool:
        """End a process without tenants; whether it agrees to."""
        agreed = ending.asks and await self._ask(shim, bundle)
        if not (agreed and ending.trusts):
            await remains.kill(shim, self.timeouts.shutdown)
        await shim.disconnect()
        return agreed

    async def _ask(self, shim: Shim, bundle: Bundle) -> bool:
        """Ask a process to end; whether it agrees."""
        seconds = self.timeouts.shutdown
        with anyio.move_on_after(seconds):
            try:
                await self.api(shim, bundle).shutdown()
            except ttrpc.ConnectionClosed:
                return True  # it ended before it could answer
            except Unavailable:
                return True  # it is about to
            except TaskdError as exc:
                log.error("shim %s refused to shut down: %s", bundle.key, exc)
                return False
            return True
        log.error("shim %s did not shut down in %s s", bundle.key, seconds)
        return False

    async def _clear(self, shim: Shim, *, ends: bool) -> None:
        """Remove what is left of a process that was killed, or that `ends` by itself."""
        if shim.home is not None:
            await self.delete_bundle(shim.home)
        if ends:
            self._group.start_soon(self._see_off, shim)
            return
        for pause in _DEATH_SECONDS:
            if await remains.remove_socket(shim):
                break
            await anyio.sleep(pause)
        else:
            # Who has inherited it, as what runc runs may have, takes no connection.
            await remains.remove_socket(shim, inherited=True)
        self._forget(shim)

    async def _see_off(self, shim: Shim) -> None:
        """Wait for one that has agreed to end; if it is killed before, it leaves its socket."""
        for pause in _SWEEP_SECONDS:
            await shim.ended(pause)
            if await remains.remove_socket(shim):
                break
        self._forget(shim)

    def _forget(self, shim: Shim) -> None:
        if self._shims.get(shim.address) is shim:
            del self._shims[shim.address]
        shim.forget()

    async def delete_bundle(self, bundle: Bundle) -> None:
        """Remove a bundle, or go on trying: while it is there its id is taken."""
        if self._survival is not None:
            self._survival.store.forget(bundle.key)
        if not await remains.remove_bundle(bundle):
            self._group.start_soon(self._sweep_bundle, bundle)

    async def _sweep_bundle(self, bundle: Bundle) -> None:
        for pause in _SWEEP_SECONDS:
            await anyio.sleep(pause)
            async with self._bundles.hold(bundle.key):
                # What lies there under its name then may be another's.
                if any(bundle.path in shim.tenants for shim in self._shims.values()):
                    return
                if await remains.remove_bundle(bundle):
                    return


def _lose(tenants: Iterable[Tenant]) -> None:
    """Have them taken down whose process has died, and with whom nobody goes on."""
    for tenant in tenants:
        if tenant.lost is not None:
            tenant.lost()
