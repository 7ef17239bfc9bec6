"""The composition root: builds each part, starts and stops them in order."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from taskd import folders, logs, pidfd, snapshots, stacks, ttrpc
from taskd.activations import MountManager
from taskd.api.activations import Mounts
from taskd.api.containers import Containers
from taskd.api.content import Content
from taskd.api.diff import Diff
from taskd.api.events import Events, ttrpc_service
from taskd.api.images import Images
from taskd.api.introspection import Introspection, Part
from taskd.api.journal import Journal as JournalService
from taskd.api.late import LateService
from taskd.api.leases import Leases
from taskd.api.namespaces import Namespaces
from taskd.api.sandboxes import Controllers, Sandboxes
from taskd.api.server import ApiServer
from taskd.api.shims import ShimProcesses
from taskd.api.snapshots import Snapshots
from taskd.api.streaming import Streaming
from taskd.api.tasks import Tasks
from taskd.api.trace import Trace
from taskd.api.version import Version
from taskd.clock import Clock
from taskd.config import Config
from taskd.content import ContentStore
from taskd.diff.differ import Differ
from taskd.errors import FailedPrecondition, TaskdError
from taskd.events import Bus, Journal
from taskd.extras import missing
from taskd.gc.collector import Collector
from taskd.gc.scheduler import Scheduler
from taskd.grpc import engine
from taskd.grpc.engine import Engine
from taskd.grpc.server import Servable
from taskd.metadata import (
    ContainerStore,
    Database,
    LeaseStore,
    NamespaceStore,
    SandboxStore,
)
from taskd.metadata.told import ToldContainers, ToldImages
from taskd.nats.settings import CURSOR
from taskd.observe.setup import Observed, observed
from taskd.proto.containerd.services.transfer.v1 import TransferBase
from taskd.qos import Qos
from taskd.restarts import Removals, RestartMonitor
from taskd.runtime import client
from taskd.runtime.binary import Daemon
from taskd.runtime.generation import V1_RUNTIME, Generation, later
from taskd.runtime.manager import TaskManager
from taskd.runtime.renewal import Renewals
from taskd.runtime.settings import Place, Settings, Timeouts
from taskd.runtime.shims import Shims
from taskd.runtime.store import DescriptorStore
from taskd.runtime.survival import Survival
from taskd.runtime.warm import Warm
from taskd.sandboxes import Controller
from taskd.service_manager import ServiceManager
from taskd.snapshots import Snapshotter
from taskd.sockets import listening
from taskd.tasks import Checkpoints, Monitor, Rootfs, TaskService
from taskd.transfer.streams import Streams

if TYPE_CHECKING:
    from taskd.nats.sink import NatsSink

__all__ = ["running", "serve"]

log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
_IGNORED = (signal.SIGHUP, signal.SIGUSR2)

_TELL_SECONDS = 0.5
"""How long the end waits for a service manager to hear of it."""

REJOIN_SECONDS = 60.0
"""How long after a start an earlier daemon's subscribers are awaited: see `Bus`."""

GRACE_SECONDS = 1.5
"""How long, at start-up, the answers of shims are awaited before others are served."""

CONTENT = "io.containerd.content.v1.content"
"""Name of the content store's folder; containerd's, as the layout below it is."""

MOUNTS = "io.containerd.mount-manager.v1.bolt"
"""Name of the folder of mounts that are made for others; containerd's."""

SANDBOXES = "io.containerd.sandbox.controller.v1.shim"
"""Name of the folders of sandboxes' bundles; containerd 2.x's."""

RUNTIME = "io.containerd.runtime.v2.task"
"""Name of the folders of bundles and of their work folders; containerd's, which tools look for."""


async def serve(config: Config, manager: ServiceManager) -> None:
    """Run a daemon until SIGTERM or SIGINT. Raises what `running` raises.

    SIGUSR1 shows where all tasks are, in the log. SIGHUP and SIGUSR2 do nothing.
    """
    stacks.show_on(signal.SIGUSR1, sys.stderr.fileno())
    with anyio.open_signal_receiver(*_ENDING, *_IGNORED) as signals:
        async with running(config), anyio.create_task_group() as group:
            # What was built so far stays; the collector need not look at it again and again.
            gc.freeze()
            gc.enable()
            group.start_soon(manager.tell, "READY=1")
            logs.announce(f"serving on {config.socket}")
            async for number in signals:
                if number in _ENDING:
                    logs.announce(f"stopping on {signal.Signals(number).name}")
                    break
                log.info("%s: ignored", signal.Signals(number).name)
            group.cancel_scope.cancel()
            with anyio.move_on_after(_TELL_SECONDS, shield=True):
                await manager.tell("STOPPING=1")


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[None]:
    """A daemon that serves as long as the context is open.

    In the end it takes no more calls, gives those in flight `Config.shutdown_timeout` to finish,
    and leaves containers running. Raises `FailedPrecondition` if another daemon uses one of the
    folders or the sockets, what `folders.own` raises besides, and what `Qos.load` raises.
    """
    _select_engine(config)
    with (
        folders.own(config.root, config.state),
        # Two daemons of one start of the machine have one clock, whatever it was set to between.
        Clock(config.state / "clock") as clock,
        Database(config.root / "metadata.db") as database,
        Journal(
            config.root / "events.db", config.events.sync, config.events.retention, clock
        ) as journal,
        # Under the lock: two daemons would undo each other's groups of resctrl. Before the sockets:
        # nobody is to connect to a daemon that a bad file ends.
        nullcontext(
            Qos.load(config.blockio_config_file, config.rdt_config_file, config.resctrl_path)
        ) as qos,
        listening(config.ttrpc_socket) as shim_listener,
        listening(config.store_socket, kind=socket.SOCK_SEQPACKET) as store_listener,
        listening(config.socket, config.grpc.uid, config.grpc.gid) as listener,
    ):
        if database.fresh and (config.root / "uuid").exists():
            log.error(
                "metadata database %s is new, though this root folder has been used: "
                "it was removed or emptied, and what it had is lost",
                database.path,
            )
        content = ContentStore(database, config.root / CONTENT)
        async with (
            observed(config) as watch,
            anyio.create_task_group() as group,
        ):
            warm = Warm() if config.shims.warm else None
            bus = Bus(journal)
            sink = await _nats_sink(config, journal, bus)
            group.start_soon(clock.keep)
            group.start_soon(journal.maintain)
            group.start_soon(database.keep_small)
            mounts = MountManager(database, config.state / MOUNTS, (config.root,))
            await mounts.load()
            snapshotters = snapshots.load(database, bus, config.root, config.snapshots)
            monitor = Monitor(bus, journal, group)
            survival = _survival(config, group)
            if isinstance(survival, Survival):
                group.start_soon(survival.store.serve, store_listener)
            if warm is not None:
                group.start_soon(warm.keep)
            shims = _shims(config, group, bus, watch, warm, survival)
            managers = {name: TaskManager(each, group, monitor) for name, each in shims.items()}
            renewals = Renewals(shims.values(), survival, group)
            scheduler = Scheduler(
                Collector(database, content, snapshotters, mounts, clock), config.gc
            )
            database.listen(scheduler.noticed)
            group.start_soon(scheduler.run)
            shim_events = ttrpc.Server([watch.served(ttrpc_service(bus))])
            sandboxes = Controller(
                shims[RUNTIME],
                Place(config.root / SANDBOXES, config.state / SANDBOXES),
                SandboxStore(database),
                bus,
                group,
                managers[RUNTIME].has,
            )
            tasks = _tasks(config, database, content, managers, sandboxes, qos, mounts)
            differ = Differ(content, config.state / "diff", config.diff)
            services = [
                *_services(config, database, content, bus, tasks, scheduler, snapshotters, differ),
                *_transfer_services(config, database, content, bus, snapshotters, differ),
                Mounts(mounts),
                Controllers(SandboxStore(database), {"shim": sandboxes}),
                JournalService(journal, bus, config.events.node),
                Trace(watch.recorder),
                ShimProcesses(shims.values(), renewals),
            ]
            api = ApiServer(services, watch.instruments)
            # Who connects meanwhile waits: clients must not see a list of tasks that is not whole,
            # and shims repeat what has been missed, which is told in order first.
            await sandboxes.find()
            bundles: set[tuple[str, str]] = set()
            for manager in managers.values():
                bundles |= await manager.load(GRACE_SECONDS)
            sandboxes.load()
            await monitor.reconcile(bundles)
            await shim_events.start(shim_listener)
            await api.start(listener)
            group.start_soon(_forget, bus)
            if config.shims.renew:
                renewals.renew_outdated()
            containers = ToldContainers(database, bus)
            restarts = RestartMonitor(containers, tasks, snapshotters, config.restart.interval)
            removals = Removals(containers, tasks, snapshotters, bus)
            if sink is not None:
                group.start_soon(sink.run)
            try:
                async with (
                    watch.scraped(journal, bus, tasks.usage),
                    restarts.running(),
                    removals.running(),
                ):
                    yield
            finally:
                with anyio.CancelScope(shield=True):
                    await api.drain(config.shutdown_timeout)
                    await api.close()
                    await renewals.close()
                    for each in shims.values():
                        await each.close()
                    await shim_events.aclose(grace=1.0)
            group.cancel_scope.cancel()


def _shims(
    config: Config,
    group: TaskGroup,
    bus: Bus,
    watch: Observed,
    warm: Warm | None,
    survival: Survival | str,
) -> dict[str, Shims]:
    """The shims of both runtimes, by the names that containerd has for them."""
    timeouts = config.timeouts
    bounds = Timeouts(
        start=timeouts["io.taskd.timeout.shim.start"],
        load=timeouts["io.containerd.timeout.shim.load"],
        cleanup=timeouts["io.containerd.timeout.shim.cleanup"],
        shutdown=timeouts["io.containerd.timeout.shim.shutdown"],
        answer=timeouts["io.containerd.timeout.task.state"],
    )
    daemon = Daemon(
        address=str(config.socket),
        ttrpc_address=str(config.ttrpc_socket),
        publish_binary=_own_executable(),
        debug=config.log_level in ("trace", "debug"),
        store=str(config.store_socket) if isinstance(survival, Survival) else "",
    )

    def v1() -> Generation:
        from taskd.runtime import v1

        return v1.generation(daemon, bus.publish)

    generations = {
        RUNTIME: client.generation(daemon, warm),
        V1_RUNTIME: later(v1),
    }
    limits = config.shims.limits(survival=isinstance(survival, Survival))
    return {
        name: Shims(
            Settings(config.root / name, config.state / name, bounds, limits),
            watch.generation(generation),
            group,
            survival if isinstance(survival, Survival) else None,
        )
        for name, generation in generations.items()
    }


def _survival(config: Config, group: TaskGroup) -> Survival | str:
    """Or why containers end with their shim."""
    if not config.shims.adopt:
        return "[shims] adopt is off"
    try:
        why = "" if pidfd.tells_exits() else "this kernel does not tell others of exits"
    except OSError as exc:
        why = f"whether this kernel tells others of exits cannot be found out: {exc.strerror}"
    if why:
        log.info("containers end with their shim: %s", why)
        return why
    return Survival(DescriptorStore(group))


def _tasks(
    config: Config,
    database: Database,
    content: ContentStore,
    managers: dict[str, TaskManager],
    sandboxes: Controller,
    qos: Qos,
    mounts: MountManager,
) -> TaskService:
    others = {name: manager for name, manager in managers.items() if name != RUNTIME}
    return TaskService(
        ContainerStore(database),
        managers[RUNTIME],
        sandboxes,
        Checkpoints(content, config.root / "checkpoints"),
        qos,
        Rootfs(mounts),
        others,
        runtimes=config.runtimes,
        state_timeout=config.timeouts["io.containerd.timeout.task.state"],
    )


def _services(
    config: Config,
    database: Database,
    content: ContentStore,
    bus: Bus,
    tasks: TaskService,
    scheduler: Scheduler,
    snapshotters: Mapping[str, Snapshotter],
    differ: Differ,
) -> list[Servable]:
    return [
        Containers(ToldContainers(database, bus)),
        Content(content, bus),
        Diff(differ),
        Events(bus),
        Images(ToldImages(database, bus), scheduler.collect_now),
        Introspection(
            _identity(config.root / "uuid"), _parts(snapshotters.values()), tasks.deprecations
        ),
        Leases(LeaseStore(database), scheduler.collect_now),
        Namespaces(NamespaceStore(database), bus),
        Sandboxes(SandboxStore(database)),
        Snapshots(snapshotters),
        Tasks(tasks),
        Version(),
    ]


def _transfer_services(
    config: Config,
    database: Database,
    content: ContentStore,
    bus: Bus,
    snapshotters: Mapping[str, Snapshotter],
    differ: Differ,
) -> list[Servable]:
    streams = Streams()

    def transfer() -> Servable:
        from taskd.api.transfer import Transfer
        from taskd.transfer.service import Transfers
        from taskd.transfer.unpacking import Layers

        transfers = Transfers(
            content,
            ToldImages(database, bus),
            LeaseStore(database),
            Layers(snapshotters, differ),
            config.transfer,
        )
        return Transfer(transfers, streams)

    return [Streaming(streams), LateService(TransferBase(), transfer)]


def _parts(snapshotters: Iterable[Snapshotter]) -> list[Part]:
    return [
        Part(
            snapshots.TYPE,
            each.name,
            has_platform=True,
            exports={"root": str(each.root)},
            capabilities=each.capabilities,
        )
        for each in snapshotters
    ]


def _select_engine(config: Config) -> None:
    """Raises `FailedPrecondition` for an engine that is not installed."""
    chosen = config.grpc.engine
    try:
        engine.select(Engine(chosen) if chosen else None)
    except ImportError as exc:
        raise FailedPrecondition(f"[grpc] engine: {exc}", verbatim=True) from exc
    log.debug("HTTP/2 is %s's", engine.chosen())


async def _nats_sink(config: Config, journal: Journal, bus: Bus) -> NatsSink | None:
    if config.events.nats is None:
        # It would keep what nobody fetches.
        with suppress(TaskdError):
            await journal.drop_cursor(CURSOR)
        return None
    try:
        from taskd.nats.sink import NatsSink
    except ImportError as exc:
        raise missing("[events.nats]", "nats-py", "nats", exc) from exc
    return NatsSink(config.events.nats, config.events.node, journal, bus)


async def _forget(bus: Bus) -> None:
    await anyio.sleep(REJOIN_SECONDS)
    bus.forget()


def _own_executable() -> str:
    """Path of ``taskd``, which older shims execute to publish an event."""
    beside = Path(sys.executable).with_name("taskd")
    return str(beside) if beside.exists() else shutil.which("taskd") or sys.argv[0]


def _identity(file: Path) -> Path:
    """The file of this daemon's UUID, which is made when it first runs on its root folder.

    One that is no UUID, as a power cut leaves it, is made anew.
    """
    with suppress(OSError, ValueError):
        uuid.UUID(file.read_text().strip())
        return file
    if file.exists():
        log.warning("%s is no UUID; this daemon has a new one", file)
    made = file.with_name(f".{file.name}")
    with made.open("w") as written:
        written.write(str(uuid.uuid4()))
        written.flush()
        os.fsync(written.fileno())
    made.replace(file)
    return file
