"""The task manager: makes, finds, and takes down all tasks of one generation of shims.

Sources: containerd's ``runtime/v2/manager.go``, ``shim.go`` and ``shim_load.go``.
"""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from taskd import moves, ttrpc
from taskd.errors import AlreadyExists, DeadlineExceeded, NotFound, TaskdError, Unknown
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection, connect
from taskd.runtime.features import needs_idmapped_mounts, refuse_without_idmapped_mounts
from taskd.runtime.generation import Binary, Generation
from taskd.runtime.held import listening
from taskd.runtime.shim import Shim, State
from taskd.runtime.shim_log import ShimLog
from taskd.runtime.spawn import kill_group
from taskd.runtime.survey import Note, note, survey
from taskd.runtime.task import Fate, Observer, Task
from taskd.runtime.types import CreateOptions, Exit, Key
from taskd.sockets import remove_stale

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["ManagerConfig", "TaskManager", "Timeouts"]

log = logging.getLogger(__name__)

_DELETES = 2
"""Times that `delete` is run if it fails: whoever killed the shim may have killed that, too."""
_LOADS_AT_ONCE = 32
_GREETING_SECONDS = 1.0
"""Between two questions to a shim that does not answer."""


_DEATH_SECONDS = (0.02, 0.1, 0.5)
"""Pauses between looks at whether a shim that was killed has let go of its socket."""
_SWEEP_SECONDS = (0.2, 1.0, 5.0)
"""Pauses between looks at whether a shim that is ending has removed its socket."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds, in seconds, on waiting for a shim (containerd: ``io.containerd.timeout.shim.*``)."""

    start: float = 60.0
    """For ``start`` to print an address. containerd has no such bound."""
    load: float = 5.0
    """For a shim found at start-up to answer."""
    cleanup: float = 5.0
    """For a ``delete`` command."""
    shutdown: float = 3.0
    """For a shim to agree to end."""


@dataclass(frozen=True, slots=True)
class ManagerConfig:
    root: Path
    """Holds the work folders of bundles."""
    state: Path
    """Holds the bundles."""
    timeouts: Timeouts = field(default_factory=Timeouts)


class TaskManager:
    """All tasks of this daemon whose shims are of one generation.

    `group` owns what goes on in the background: a watch on each shim's connection. `observer` is
    told what becomes of the tasks.
    """

    def __init__(
        self,
        config: ManagerConfig,
        generation: Generation,
        group: TaskGroup,
        observer: Observer,
    ) -> None:
        self._config = config
        self._generation = generation
        self._group = group
        self._observer = observer
        self._tasks: dict[Key, Task] = {}
        # Those in which a task is being made.
        self._making: set[Task] = set()
        self._busy = _KeyedLock()

    def get(self, namespace: str, id: str) -> Task:  # noqa: A002
        """Raises `NotFound`."""
        try:
            return self._tasks[Key(namespace, id)]
        except KeyError:
            raise NotFound(f"task {id}") from None

    def all(self, namespace: str | None = None) -> list[Task]:
        """The tasks of a namespace, or all."""
        return [task for task in self._tasks.values() if namespace in (None, task.namespace)]

    async def create(self, namespace: str, id: str, options: CreateOptions) -> Task:  # noqa: A002
        """Start a shim and make a task in it.

        Raises `AlreadyExists` if there is such a task, `InvalidArgument` for a bad id or spec,
        `Unknown` in the shim's own words if it does not start, and the shim's error if it does
        not make the task. Nothing is left behind then, nor if the caller is cancelled.
        """
        key = Key(namespace, id)
        async with self._busy.hold(key):
            if key in self._tasks:
                raise AlreadyExists(f"task {id}")
            moves.expect()
            try:
                task = await self._start(key, options)
            except TaskdError as exc:
                raise exc.within("failed to start shim") from exc
            self._making.add(task)
            answered = False
            try:
                if options.unpack_checkpoint is not None:
                    folder = task.bundle.work / "checkpoint"
                    await options.unpack_checkpoint(folder)
                    options = replace(options, checkpoint=str(folder))
                try:
                    pid = await task.api.create(str(task.bundle.path), options)
                except (ttrpc.ConnectionClosed, DeadlineExceeded):
                    raise
                except TaskdError:
                    answered = True
                    raise
                task.process("").pid = pid
                await self._observer.created(task, options)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._abandon(task, options, refused=answered)
                raise
            finally:
                self._making.discard(task)
            self._admit(task)
            return task

    async def delete(self, namespace: str, id: str) -> Exit:  # noqa: A002
        """Delete a task that has exited, with its shim and its bundle; returns its exit.

        If the shim dies meanwhile the task is gone all the same, and its exit is what could be
        found out. Raises `NotFound`, or the shim's error (`FailedPrecondition` while it runs).
        """
        async with self._busy.hold(Key(namespace, id)):
            task = self.get(namespace, id)
            try:
                found = await task.api.delete_task()
            except ttrpc.ConnectionClosed:
                pass
            except NotFound:
                # The shim does not know its own task: there is nothing to keep it for.
                with anyio.CancelScope(shield=True):
                    await task.deleted(None)
                    await self._finish(task)
                raise
            else:
                with anyio.CancelScope(shield=True):
                    await task.deleted(found)
                    await self._finish(task)
                return found
        # The watch, which needs the lock, cleans up.
        return await task.end()

    async def load(self, grace: float) -> set[Key]:
        """Reconnect to the shims of an earlier daemon and clean up after those that died.

        Returns the namespaces and ids of all bundles, after `grace` seconds at the latest: what has
        not ended by then goes on in the background. A shim that does not answer is in the list, as
        its container may be running, and is asked until it does. Entries that are no bundles are
        left alone.
        """
        found = await to_thread.run_sync(survey, self._config.state, self._config.root)
        known = {bundle.key for bundle, _ in found}
        unfinished = set(known)
        finished = anyio.Event()
        limiter = anyio.CapacityLimiter(_LOADS_AT_ONCE)

        async def load(bundle: Bundle, noted: Note) -> None:
            try:
                await self._load(bundle, noted, limiter)
            finally:
                unfinished.discard(bundle.key)
                if not unfinished:
                    finished.set()

        for bundle, noted in found:
            self._group.start_soon(load, bundle, noted)
        if found:
            with anyio.move_on_after(grace):
                await finished.wait()
        if unfinished:
            log.warning("serving, while %d shims have not answered yet", len(unfinished))
        return known

    async def close(self) -> None:
        """Close all connections; the shims and their containers go on."""
        for task in self._tasks.values():
            await task.shim.disconnect()

    # --- starting -------------------------------------------------------------------------

    async def _start(self, key: Key, options: CreateOptions) -> Task:
        spec = options.spec.value if options.spec is not None else b""
        config = self._config
        try:
            bundle = await to_thread.run_sync(
                Bundle.create, config.state, config.root, key.namespace, key.id, spec
            )
        except OSError as exc:
            raise Unknown(str(exc)) from exc
        shim_log = bootstrap = connection = None
        try:
            try:
                path = self._generation.resolve(options.runtime)
            except TaskdError as exc:
                raise exc.within("failed to resolve runtime path") from exc
            shim_log = ShimLog(bundle)
            binary = self._generation.binary(path, bundle)
            if needs_idmapped_mounts(spec):
                await self._require_idmapped_mounts(binary, options)
            try:
                with anyio.fail_after(config.timeouts.start):
                    bootstrap = await binary.start(options)
                connection = await connect(bootstrap, timeout=config.timeouts.load)
            except TimeoutError:
                raise Unknown(f"start failed: no address in {config.timeouts.start} s") from None
            except TaskdError as exc:
                raise exc.within("start failed") from exc
            await to_thread.run_sync(note, bundle, path, bootstrap)
        except BaseException:
            with anyio.CancelScope(shield=True):
                # First what gives descriptors back, of which a clean-up needs some.
                if shim_log is not None:
                    shim_log.close()
                if connection is not None:
                    await connection.aclose()
                await self._take_down(bundle, bootstrap)
            raise
        return self._task(binary, connection, bootstrap, shim_log)

    async def _require_idmapped_mounts(self, binary: Binary, options: CreateOptions) -> None:
        """An OCI runtime that knows nothing of them would mount without mapping, and not say so."""
        try:
            with anyio.fail_after(self._config.timeouts.start):
                refuse_without_idmapped_mounts(await binary.features(options.options))
        except TimeoutError:
            words = f"runtime info: no answer in {self._config.timeouts.start} s"
            raise Unknown(f"failed to validate OCI runtime features: {words}") from None
        except TaskdError as exc:
            raise exc.within("failed to validate OCI runtime features") from exc

    def _task(
        self, binary: Binary, connection: Connection, bootstrap: Bootstrap, shim_log: ShimLog
    ) -> Task:
        bundle = binary.bundle
        api = self._generation.task(connection, bundle, bootstrap)
        spawn = self._group.start_soon
        shim = Shim(binary, connection, bootstrap, shim_log, api)
        spawn(shim.hold)
        return Task(bundle, api, shim, self._observer, spawn)

    async def _abandon(self, task: Task, options: CreateOptions, *, refused: bool) -> None:
        """Take down a shim in which no task could be made.

        One that has `refused` to make it has undone what it did itself, unless it has noted an init
        process: what its ``delete`` would find under that id is somebody else's.
        """
        shim = task.shim
        found = None
        with anyio.move_on_after(self._config.timeouts.cleanup) as asking, suppress(TaskdError):
            found = await task.api.delete("")
        shim.state = State.ENDING
        # One that hangs is asked no more.
        hangs = asking.cancelled_caught
        agreed = not hangs and await shim.shutdown(timeout=self._config.timeouts.shutdown)
        left = not refused or (task.bundle.path / "init.pid").exists()
        binary = shim.binary if left or not agreed else None
        # If it has not answered, it may have been killed, or be making the task still.
        ends = agreed and refused
        await self._take_down(task.bundle, shim.bootstrap, shim=shim, binary=binary, ends=ends)
        await self._observer.abandoned(task, options, found)

    def _admit(self, task: Task) -> None:
        self._tasks[task.key] = task
        self._group.start_soon(self._watch, task)

    # --- ending ---------------------------------------------------------------------------

    async def _finish(self, task: Task) -> None:
        """End a shim whose task is deleted, and remove what is left of both."""
        shim = task.shim
        shim.state = State.ENDING
        # The task is deleted already, so neither has to wait for the other.
        async with anyio.create_task_group() as both:
            if shim.binary.deletes_after_shutdown:
                both.start_soon(self._run_delete, shim.binary)
            agreed = await shim.shutdown(timeout=self._config.timeouts.shutdown)
            await shim.disconnect()
        if agreed:
            shim.release()
            await self._delete_bundle(task.bundle)
            self._group.start_soon(self._sweep_socket, task)
        else:
            await self._take_down(task.bundle, shim.bootstrap, shim=shim)
        self._tasks.pop(task.key, None)

    async def _take_down(
        self,
        bundle: Bundle,
        bootstrap: Bootstrap | None,
        *,
        shim: Shim | None = None,
        binary: Binary | None = None,
        ends: bool = False,
    ) -> Exit | None:
        """Remove what there is of a shim: process, task, bundle, and socket.

        The process is killed, unless it `ends` by itself or has other tasks. The task is cleaned up
        after by the `binary`, if there is one: what that says of the exit. Each step is taken
        whatever became of the others.
        """
        shared = bootstrap is not None and self._is_shared(bootstrap, shim)
        # What a shim runs ends with it, and is not to make what `delete` has just removed.
        if not shared and not ends:
            await self._kill(bundle, bootstrap, shim)
        if shim is not None:
            shim.release()
            await shim.disconnect()
        found = await self._run_delete(binary) if binary is not None else None
        await self._delete_bundle(bundle)
        for pause in _DEATH_SECONDS if not shared else ():
            if await self._remove_socket(bundle, bootstrap):
                break
            await anyio.sleep(pause)
        return found

    async def _kill(self, bundle: Bundle, bootstrap: Bootstrap | None, shim: Shim | None) -> None:
        seconds = self._config.timeouts.shutdown
        try:
            if shim is not None and await shim.kill(seconds):
                return
            if bootstrap is not None and shim is None:
                kill_group(bootstrap.group)
            socket = self._socket(bundle, bootstrap)
            for process in await to_thread.run_sync(listening, socket):
                log.warning("killing process %d, which listens on %s", process.pid, socket)
                try:
                    await process.kill(seconds)
                finally:
                    process.release()
        except OSError as exc:
            log.error("killing shim %s: %s", bundle.key, exc)

    def _is_shared(self, bootstrap: Bootstrap, shim: Shim | None) -> bool:
        """Whether tasks other than `shim`'s live in that process (containerd's shim grouping)."""
        return any(
            other.shim is not shim and other.shim.bootstrap.address == bootstrap.address
            for other in (*self._tasks.values(), *self._making)
        )

    async def _watch(self, task: Task) -> None:
        """Wait for the connection to end; if nobody ended it, the shim died."""
        shim = task.shim
        await shim.connection.wait_closed()
        if shim.state is State.ENDING:
            return
        shim.state, task.fate = State.GONE, Fate.LOST
        log.warning("shim %s disconnected; cleaning up after it", shim.name)
        async with self._busy.hold(task.key):
            found = await self._clean_up_dead(shim.binary, shim.bootstrap, task)
            del self._tasks[task.key]
        task.ended(found)
        await self._observer.lost(task.key, found)

    async def _clean_up_dead(
        self,
        binary: Binary,
        bootstrap: Bootstrap | None,
        task: Task | None = None,
        *,
        ends: bool = False,
    ) -> Exit:
        """Take a shim down that cannot tell how its task has ended; what is known of that."""
        shim, pid = (task.shim, task.pid) if task is not None else (None, 0)
        found = await self._take_down(binary.bundle, bootstrap, shim=shim, binary=binary, ends=ends)
        if found is None:
            # 255: containerd's status for an exit that nobody saw.
            return Exit(pid, 255, time.time_ns())
        return replace(found, pid=found.pid or pid)

    def _socket(self, bundle: Bundle, bootstrap: Bootstrap | None) -> Path:
        """Where it listens, or must have listened if it was killed before it could say."""
        told = bootstrap.socket if bootstrap is not None else None
        return told or self._generation.socket(bundle)

    async def _remove_socket(self, bundle: Bundle, bootstrap: Bootstrap | None) -> bool:
        """Remove the socket of a shim that was killed; whether there is none now."""
        try:
            await to_thread.run_sync(remove_stale, self._socket(bundle, bootstrap))
        except (TaskdError, OSError):
            return False
        return True

    async def _sweep_socket(self, task: Task) -> None:
        """Remove the socket of a shim that has agreed to end, if it is killed before it does so."""
        shim = task.shim
        for pause in _SWEEP_SECONDS:
            await anyio.sleep(pause)
            # Another one of the same name may be about to listen there.
            async with self._busy.hold(task.key):
                if task.key in self._tasks:
                    return
                if self._is_shared(shim.bootstrap, shim):
                    return
                if await self._remove_socket(task.bundle, shim.bootstrap):
                    return

    async def _run_delete(self, binary: Binary) -> Exit | None:
        bundle = binary.bundle
        for _ in range(_DELETES):
            try:
                with anyio.fail_after(self._config.timeouts.cleanup):
                    return await binary.delete()
            except TimeoutError:
                log.warning("cleaning up after shim %s: timeout", bundle.key)
                break
            except (TaskdError, OSError) as exc:
                log.warning("cleaning up after shim %s: %s", bundle.key, exc)
        return None

    async def _delete_bundle(self, bundle: Bundle) -> None:
        """Remove a bundle, or go on trying: while it is there its id is taken."""
        if not await self._bundle_deleted(bundle):
            self._group.start_soon(self._sweep_bundle, bundle)

    async def _bundle_deleted(self, bundle: Bundle) -> bool:
        try:
            await to_thread.run_sync(bundle.delete)
        except OSError as exc:
            log.error("removing bundle %s: %s", bundle.path, exc)
            return False
        return True

    async def _sweep_bundle(self, bundle: Bundle) -> None:
        for pause in _SWEEP_SECONDS:
            await anyio.sleep(pause)
            # What lies there under its name then is another's.
            async with self._busy.hold(bundle.key):
                if bundle.key in self._tasks:
                    return
                if await self._bundle_deleted(bundle):
                    return

    # --- loading --------------------------------------------------------------------------

    async def _load(self, bundle: Bundle, noted: Note, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            task = await self._reconnect(bundle, noted)
        if task is not None:
            await self._greet(task)

    async def _reconnect(self, bundle: Bundle, noted: Note) -> Task | None:
        try:
            path = self._generation.resolve(noted.binary())
        except FileNotFoundError:
            if (bundle.path / "config.json").exists():
                # Its making was cut short before there could be a container in it.
                log.warning("bundle %s is half made; removing it", bundle.path)
                await self._take_down(bundle, None)
            else:
                log.error("%s is no bundle; it is left alone", bundle.path)
            return None
        except (OSError, ValueError, TaskdError) as exc:
            log.error("bundle %s is left alone: %s", bundle.path, exc)
            return None
        binary = self._generation.binary(path, bundle)
        bootstrap = None
        try:
            bootstrap = noted.bootstrap()
            connection = await connect(bootstrap, timeout=self._config.timeouts.load)
        except (OSError, ValueError, TaskdError) as exc:
            log.warning("shim %s is dead: %s", bundle.key, exc)
            async with self._busy.hold(bundle.key):
                found = await self._clean_up_dead(binary, bootstrap)
            await self._observer.lost(bundle.key, found)
            return None
        task = self._task(binary, connection, bootstrap, ShimLog(bundle))
        self._admit(task)
        return task

    async def _greet(self, task: Task) -> None:
        """Ask a shim of an earlier daemon for its task until it answers."""
        shim = task.shim
        while True:
            try:
                state = await task.api.state("", timeout=self._config.timeouts.load)
            except ttrpc.ConnectionClosed:
                return  # the watch cleans up
            except NotFound:
                await self._end_idle(task)
                return
            except TaskdError as exc:
                if shim.state is State.SERVING:
                    shim.state = State.SILENT
                    log.warning("shim %s does not answer: %s", shim.name, exc)
                await anyio.sleep(_GREETING_SECONDS)
                continue
            task.process("").pid = state.pid
            if shim.state is State.SILENT:
                shim.state = State.SERVING
                log.warning("shim %s answers again", shim.name)
            await self._observer.found(task, state)
            return

    async def _end_idle(self, task: Task) -> None:
        """End a shim that has no task: an earlier daemon was making it, or had deleted it."""
        shim = task.shim
        async with self._busy.hold(task.key):
            if shim.ends:
                return
            log.warning("shim %s has no task; ending it", shim.name)
            shim.state, task.fate = State.ENDING, Fate.LOST
            # It may agree because it has other tasks, of which we do not know yet.
            agreed = await shim.shutdown(timeout=self._config.timeouts.shutdown)
            found = await self._clean_up_dead(shim.binary, shim.bootstrap, task, ends=agreed)
            del self._tasks[task.key]
        task.ended(found)
        await self._observer.lost(task.key, found)


class _KeyedLock:
    """One lock for each key, while somebody holds it."""

    def __init__(self) -> None:
        self._locks: dict[Key, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or anyio.Lock()
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1
