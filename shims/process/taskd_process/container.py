"""A container that is none: a session of host processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING, Any

from taskd.errors import FailedPrecondition, NotFound, Unknown
from taskd.shim import Container, Process, Sandbox, Status, leftovers
from taskd_process.cgroup import Cgroup
from taskd_process.launch import Launch

if TYPE_CHECKING:
    import asyncio

    import betterproto2

    from taskd.procfs import Stat

__all__ = ["HostProcess"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_REMOVALS = 100
"""Times that it is tried to remove a cgroup, until those who were killed have left it."""
_REMOVAL_SECONDS = 0.02


class HostProcess(Container):
    """Runs ``process`` of the specification as it is, and execs beside it."""

    sandboxes = Sandbox

    _launch: Launch | None = None
    _own: Cgroup | None = None

    _paused = False

    @cached_property
    def _freezing(self) -> asyncio.Lock:
        """Held while an exec is started, and while all is frozen or thawed."""
        import asyncio

        return asyncio.Lock()

    @classmethod
    def begin(cls) -> None:
        from taskd import moves

        moves.expect()

    async def create(self, init: Process) -> int:
        linux = self.spec.get("linux") or {}
        self._own = Cgroup.make(linux.get("cgroupsPath") or "")
        try:
            self._launch = await self._prepared(init)
            for name, descriptor in self._launch.kept.items():
                init.keep(name, descriptor)
            if self._own is not None:
                self._own.limit(linux.get("resources") or {})
        except BaseException as exc:
            await self.delete()
            if isinstance(exc, OSError):
                raise Unknown(_said(exc)) from exc
            raise
        return self._launch.pid

    async def start(self, init: Process) -> int:
        assert self._launch is not None
        await self._launch.release()
        self._drop_launch()
        return init.pid

    async def adopt(self, execs: Sequence[Process]) -> None:
        init = self.init
        leftovers.kill_strangers(self.bundle, {init.pid, *(each.pid for each in execs)})
        self._own = Cgroup.existing((self.spec.get("linux") or {}).get("cgroupsPath") or "")
        self._paused = init.status is Status.PAUSED
        if init.status is Status.CREATED:
            self._launch = launch = Launch.recovered(init.pid, init.take)
            if init.doing and await launch.was_released():
                self._drop_launch()
                init.begun()
            elif not launch.kept:
                raise Unknown("what it waits for has not been kept")

    def _drop_launch(self) -> None:
        assert self._launch is not None
        for name in Launch.KEPT:
            self.init.drop(name)
        self._launch.close()

    async def exec(self, process: Process) -> int:
        # One that is paused on its way would be neither there nor not.
        async with self._freezing:
            if self._paused:
                raise Unknown("cannot exec in a paused container")
            launch = await self._prepared(process)
            await launch.release()
        return launch.pid

    async def _prepared(self, process: Process) -> Launch:
        from taskd.shim.console import open_terminal

        if not process.stdio.terminal:
            launch = await Launch.prepare(process.spec, process.descriptors, terminal=False)
        else:
            master, slave = open_terminal()
            try:
                launch = await Launch.prepare(process.spec, (slave,) * 3, terminal=True)
            except BaseException:
                os.close(master)
                raise
            finally:
                os.close(slave)
            process.attach(master)
        try:
            leftovers.note(self.bundle, launch.pid)
            if self._own is not None:
                self._own.add(launch.pid)
        except BaseException:
            launch.close()
            raise
        return launch

    async def kill(self, process: Process, signal: int, everyone: bool) -> None:
        if not everyone:
            await super().kill(process, signal, everyone)
            self._let_die(signal, process.pid)
            return
        if signal == SIGKILL:
            found = await self._kill_all()
        else:
            found = await self.pids()
            self._send(signal, found)
        if not found:
            raise NotFound("process already finished")

    async def ended(self) -> None:
        await self._kill_all()

    async def _kill_all(self) -> Collection[int]:
        """Kill everybody; who that was."""
        killed: set[int] = set()
        # Whoever is killed forks no more, but may have done so since the members were looked up.
        while found := set(await self.pids()) - killed:
            self._send(SIGKILL, found)
            killed |= found
        return killed

    def _send(self, number: int, pids: Collection[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        self._let_die(number, *pids)

    def _let_die(self, number: int, *pids: int) -> None:
        if number == SIGKILL and self._own is not None and self._paused:
            for pid in pids:
                self._own.let_die(pid)

    async def delete(self) -> None:
        import asyncio

        if self._launch is not None:
            self._drop_launch()
            # Of one whose creation has failed, nobody tells the end.
            if self.init.pid and self.init.status is Status.CREATED:
                await self.init.gone.wait()
        if self._own is not None:
            for _ in range(_REMOVALS):
                if self._own.remove():
                    break
                await asyncio.sleep(_REMOVAL_SECONDS)

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        super().clean_up(id, namespace, bundle)
        linux = json.loads((bundle / "config.json").read_bytes()).get("linux") or {}
        cgroup = Cgroup.existing(linux.get("cgroupsPath") or "")
        if cgroup is None:
            return
        # Of one that was refused nobody has been noted, and whoever is there is not ours.
        ours = leftovers.has_noted(bundle)
        for _ in range(_REMOVALS):
            if ours:
                for pid in cgroup.pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, SIGKILL)
                with suppress(FileNotFoundError):
                    cgroup.freeze(False)  # what is frozen would only die later
            if cgroup.remove() or not ours:
                break
            time.sleep(_REMOVAL_SECONDS)

    async def pids(self) -> list[int]:
        if self._own is not None:
            return self._own.pids()
        return [each.pid for each in self._members()]

    def _members(self) -> Iterator[Stat]:
        return (each for each in leftovers.members(self.bundle) if each.state != "Z")

    async def pause(self) -> None:
        await self._freeze(True, SIGSTOP)

    async def resume(self) -> None:
        await self._freeze(False, SIGCONT)

    async def _freeze(self, yes: bool, number: int) -> None:
        async with self._freezing:
            if self._own is None or not self._own.freeze(yes):
                self._send(number, await self.pids())
            self._paused = yes

    async def stats(self) -> betterproto2.Message:
        from taskd.proto.io.containerd.cgroups.v2 import CpuStat, MemoryStat, Metrics, PidsStat

        if self._own is not None:
            return self.cgroup.stats()
        members = list(self._members())
        if not members:
            raise NotFound("process already finished")
        ticks = sum(each.ticks for each in members)
        return Metrics(
            pids=PidsStat(current=len(members)),
            cpu=CpuStat(usage_usec=ticks * 10**6 // _TICKS),
            memory=MemoryStat(usage=sum(each.pages for each in members) * _PAGE),
        )

    async def update(self, resources: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
        if self._own is None:
            raise FailedPrecondition("limits take a cgroup, and there is none")
        try:
            self._own.limit(resources)
        except OSError as exc:
            raise Unknown(_said(exc)) from exc


def _said(exc: OSError) -> str:
    about = f"{exc.filename}: " if exc.filename else ""
    return f"{about}{(exc.strerror or str(exc)).lower()}"
