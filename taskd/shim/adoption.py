"""Going on with the containers of a shim that has died.

What it knew of them is in their bundles, and what they had open has been kept by the daemon. How a
process ended meanwhile is learnt by its pidfd. What was under way when the shim died is settled
first: it came about, or it did not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import betterproto2

from taskd import pidfd
from taskd.errors import TaskdError, Unknown
from taskd.shim import record, sandboxed
from taskd.shim.container import Container
from taskd.shim.keeper import Keeper
from taskd.shim.process import Process, Status
from taskd.shim.reaper import UNSEEN, Ended, Reaper
from taskd.shim.record import ProcessRecord, Record, Torn
from taskd.shim.sandbox import Sandbox
from taskd.shim.stdio import Streams
from taskd.shim.task import Task
from taskd.slots import Slots

__all__ = ["Adopter"]

log = logging.getLogger(__name__)

_SECONDS = 10.0
"""For one container: a runtime that hangs must not keep the others from being gone on with."""
_LIVE = (Status.CREATED, Status.RUNNING, Status.PAUSED, Status.PAUSING)


class Adopter:
    """Makes tasks of what there is of a dead shim's containers, all of one namespace."""

    def __init__(
        self,
        kind: type[Container],
        namespace: str,
        reaper: Reaper,
        keeper: Keeper,
        publish: Callable[[betterproto2.Message], None],
    ) -> None:
        self._kind = kind
        self._namespace = namespace
        self._reaper = reaper
        self._keeper = keeper
        self._publish = publish
        self._sandboxes: dict[str, Sandbox] = {}

    async def adopt(
        self,
        bundles: Iterable[Path],
        admit: Callable[[Task], None],
        admit_sandbox: Callable[[Sandbox], None],
    ) -> None:
        """Admit each container, and each sandbox, that can be gone on with.

        Of others, the log says why not.
        """
        bundles = list(bundles)
        rooms = [path for path in bundles if sandboxed.containers(path) is not None]
        for path in rooms:
            await self._adopt_sandbox(path, admit_sandbox)
        # A container may have the name of its sandbox.
        paths = {path.name: path for path in bundles if path not in rooms}
        kept: dict[str, dict[str, Slots]] = {name: {} for name in paths}
        try:
            for (name, process), slots in (await self._keeper.recover(paths)).items():
                kept[name][process] = slots
        except OSError as exc:
            log.warning("what the daemon has kept: %s", exc)
        await asyncio.gather(
            *(self._adopt(path, kept[name], admit) for name, path in paths.items())
        )

    async def _adopt_sandbox(self, bundle: Path, admit: Callable[[Sandbox], None]) -> None:
        try:
            found = record.read_sandbox(bundle)
            if self._kind.sandboxes is None:
                raise Unknown("this shim has none")
            sandbox = self._kind.sandboxes(
                found.id, self._namespace, bundle, self._reaper, found.wanted
            )
            found.restore(sandbox)
            async with asyncio.timeout(_SECONDS):
                await sandbox.adopt()
        except (TaskdError, Torn, OSError, TimeoutError) as exc:
            log.warning("sandbox %s is not gone on with: %s", bundle.name, exc)
        except Exception:
            log.exception("sandbox %s is not gone on with", bundle.name)
        else:
            self._sandboxes[sandbox.id] = sandbox
            admit(sandbox)

    async def _adopt(
        self, bundle: Path, kept: dict[str, Slots], admit: Callable[[Task], None]
    ) -> None:
        try:
            if (name := sandboxed.of(bundle)) and name not in self._sandboxes:
                raise Unknown(f"sandbox {name}, which it was in, has ended")
            found = record.read(bundle)
            async with asyncio.timeout(_SECONDS):
                task = await self._task(found, bundle, kept)
            # What was on the way when the shim died; a daemon takes it once.
            for event in _begun(task):
                self._publish(event)
            admit(task)
        except (TaskdError, Torn, OSError, TimeoutError) as exc:
            log.warning("container %s is not gone on with: %s", bundle.name, exc)
        except Exception:
            log.exception("container %s is not gone on with", bundle.name)
        finally:
            for slots in kept.values():
                for descriptor in slots.values():
                    os.close(descriptor)

    async def _task(self, found: Record, bundle: Path, kept: Mapping[str, Slots]) -> Task:
        container = self._kind(
            found.id, self._namespace, bundle, self._reaper, found.options, found.checkpoint
        )
        container.sandbox = self._sandboxes.get(sandboxed.of(bundle))
        processes: dict[str, Process] = {}
        try:
            for each in found.processes:
                spec = each.spec if each.id else container.spec.get("process") or {}
                process = processes[each.id] = each.restored(spec)
                self._recover(process, each, kept.get(each.id, {}))
            container.init = init = processes[""]
            if init.status is Status.DELETED:
                raise Unknown("it is deleted")
            await container.adopt([each for each in processes.values() if each.id])
            if init.doing in ("pause", "resume"):
                # Nobody knows how far that came: it runs, and a client may ask again.
                with suppress(Exception):
                    await container.resume()
                init.begun()
        except BaseException:
            for process in processes.values():
                await process.release(0)
                process.let_go()
            raise
        for process in processes.values():
            _settle(process)
        task = Task(container, bundle / "rootfs" if found.mounted else None)
        task.execs.update({name: each for name, each in processes.items() if name})
        return task

    def _recover(self, process: Process, known: ProcessRecord, slots: Slots) -> None:
        """Give it what has been kept of it. Raises `Unknown` if that is not what it needs."""
        alive = known.status in _LIVE and known.pid > 0
        if alive and "pid" not in slots:
            if known.copied:
                raise Unknown("what it reads and writes has not been kept")
            try:
                slots["pid"] = pidfd.open_known(known.pid, known.started)
            except ProcessLookupError:
                if not process.id:
                    raise Unknown("nobody knows how it has ended") from None
                process.stopped(Ended(UNSEEN, time.time_ns()))
        if slots:
            streams = Streams.recovered(slots, process.id, self._reaper, process.opened)
            if known.doing == "start":
                streams.hold()
            process.recover(slots, streams)


def _begun(task: Task) -> Iterator[betterproto2.Message]:
    """The events that its processes have begun."""
    yield task.created()
    if task.init.status is not Status.CREATED:
        yield task.started(task.init)
    for process in task.execs.values():
        if process.pid:
            yield task.started(process)


def _settle(process: Process) -> None:
    """What was being started when the shim died, and of which nobody knows more, has not been."""
    if process.status is Status.CREATED and process.doing and process.id:
        # It may have run, which it must not do twice.
        process.stopped(Ended(UNSEEN, time.time_ns()))
    process.doing = ""
    if process.status is not Status.CREATED and process.streams is not None:
        process.streams.handed()
    if process.status in _LIVE and process.pid and process.pidfd < 0:
        try:
            process.pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            process.stopped(Ended(UNSEEN, time.time_ns()))
    if process.status is Status.STOPPED:
        process.gone.set()
        process.ended.set()
