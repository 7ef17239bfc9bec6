"""Fresh processes in the stead of those that shims have, without an end of what lives in them.

It is what happens when a process dies (`taskd.runtime.survival`), on purpose, and at a moment when
nothing is on its way: calls wait, the old process comes to an end with what it does, and leaves.
In containerd, which has nothing like it, containers keep the shim that they were made with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio
from anyio.abc import TaskGroup

from taskd.errors import FailedPrecondition, TaskdError
from taskd.runtime.connection import Connection
from taskd.runtime.line import Line
from taskd.runtime.shim import Shim, State
from taskd.runtime.shims import Shims
from taskd.runtime.store import Keeping
from taskd.runtime.survival import Survival

__all__ = ["Renewals", "is_older"]

log = logging.getLogger(__name__)

_CALLS_SECONDS = 10.0
"""For calls that are under way to be answered."""
_LEAVE_SECONDS = 15.0
"""For the old process to leave: longer than it takes to say that it cannot."""
_END_SECONDS = 5.0
"""For its end to be seen, and for a fresh one to tell its pid."""
_HELLO_SECONDS = 10.0
"""For a process that is found again to have its descriptors kept by this daemon."""
_LOOK_SECONDS = 0.02
_LATER_SECONDS = 1.0
"""Clients, who have waited for the daemon, come first."""


class Renewals:
    """Renews processes, one at a time. `group` owns what is done in the background."""

    def __init__(
        self, generations: Iterable[Shims], survival: Survival | str, group: TaskGroup
    ) -> None:
        """Instead of `survival`: why nobody goes on with anything."""
        self._generations = list(generations)
        self._survival = survival
        self._group = group
        self._lock = anyio.Lock()
        self._closing = False

    def version(self, shim: Shim) -> str:
        """Of taskd, that a process runs; empty if it does not tell."""
        keeping = self._keeping(shim)
        return keeping.version.partition(" ")[0] if keeping is not None else ""

    async def renew(self, shim: Shim) -> int:
        """Have a fresh process go on; its pid, or 0 if nothing lived in the old one, which ends.

        Whoever is cancelled meanwhile waits. Raises `FailedPrecondition`, which says why the
        process is left as it is, or why nobody could go on.
        """
        async with self._lock:
            with anyio.CancelScope(shield=True):
                pid = await self._renew(shim)
        return pid

    async def _renew(self, shim: Shim) -> int:
        survival, keeping = self._able(shim)
        line = shim.connection
        assert line is not None
        old = line.connection
        if shim.landlord is not None:
            shim.landlord.shut(shim)
        try:
            await self._wait_for_calls(shim, line)
            if shim.ends:
                await shim.gone.wait()
                return 0
            mortal = [each for each in shim.tenants.values() if each not in survival.of([each])]
            if mortal:
                names = ", ".join(str(each.key) for each in mortal)
                raise _left(f"nobody could go on with {names}")
            shim.dismissed = True
            await self._dismiss(survival, keeping, old)
        except BaseException:
            shim.dismissed = False
            line.release()
            raise
        finally:
            if shim.landlord is not None:
                shim.landlord.reopen(shim)
        if await line.goes_on(old):
            with anyio.move_on_after(_END_SECONDS):
                return await shim.told_pid()
        elif shim.state is State.GONE:
            raise _left("no other process could go on: the daemon's log says why")
        return 0

    def _able(self, shim: Shim) -> tuple[Survival, Keeping]:
        """Raises `FailedPrecondition` if it is known that it cannot be renewed."""
        if self._closing:
            raise _left("the daemon ends")
        if isinstance(self._survival, str):
            raise _left(self._survival)
        if shim.foreign:
            raise _left("a client has named it: it is not this daemon's")
        if shim.ends:
            raise _left("it ends")
        keeping = self._keeping(shim)
        if keeping is None:
            raise _left(
                "it has not answered yet"
                if not shim.pid or shim.state is State.SILENT
                else "it is no shim on taskd.shim, or one with which its containers end, "
                "or was started without [shims] adopt"
            )
        return self._survival, keeping

    def _keeping(self, shim: Shim) -> Keeping | None:
        if isinstance(self._survival, str) or not shim.pid:
            return None
        return self._survival.store.of(shim.pid)

    async def _wait_for_calls(self, shim: Shim, line: Line) -> None:
        """Have calls wait; what is being made is made first. The process may end meanwhile."""
        try:
            with anyio.fail_after(_CALLS_SECONDS):
                while not shim.ends and not _is_settled(shim):  # noqa: ASYNC110 - and may end
                    await anyio.sleep(_LOOK_SECONDS)
                await line.hold()
        except TimeoutError:
            words = f"a call has not been answered in {_CALLS_SECONDS:g} s"
            raise _left(words) from None

    async def _dismiss(self, survival: Survival, keeping: Keeping, old: Connection | None) -> None:
        """Have the old process leave, of which that is the connection."""
        try:
            with anyio.fail_after(_LEAVE_SECONDS):
                reason = await survival.store.dismiss(keeping)
            if not reason and old is not None:
                with anyio.fail_after(_END_SECONDS):
                    await old.wait_closed()
        except TimeoutError:
            raise _left("it does not leave") from None
        except OSError as exc:
            raise _left(f"it cannot be asked to leave: {exc.strerror}") from None
        if reason:
            raise _left(reason)

    # --- those that are outdated ----------------------------------------------------------

    def renew_outdated(self) -> None:
        """Renew those of an older version than what is installed, in the background."""
        if not isinstance(self._survival, str):
            for shims in self._generations:
                for shim in shims.all():
                    self._group.start_soon(self._renew_outdated, shims, shim)

    async def _renew_outdated(self, shims: Shims, shim: Shim) -> None:
        await anyio.sleep(_LATER_SECONDS)
        if not (version := await self._known_version(shim)):
            return
        try:
            installed = await shims.installed(shim)
            if not is_older(version, installed):
                return
            name, pid = shim.name, shim.pid
            log.info(
                "shim %s, process %d, runs version %s; renewing it, as %s is installed",
                *(name, pid, version, installed),
            )
            fresh = await self.renew(shim)
        except TaskdError as exc:
            log.warning("shim %s is not renewed: %s", shim.name, exc)
        else:
            if fresh:
                log.info("shim %s is renewed: process %d goes on for %d", name, fresh, pid)
            else:
                log.info("shim %s, process %d, had nothing to go on with; it is ended", name, pid)

    async def _known_version(self, shim: Shim) -> str:
        """Of one that an earlier daemon has started; empty if it has nothing to hand over."""
        assert isinstance(self._survival, Survival)
        await shim.told_pid()
        if shim.home is None and not self._survival.of(shim.tenants.values()):
            return ""
        with anyio.move_on_after(_HELLO_SECONDS):
            while not shim.ends:
                if version := self.version(shim):
                    return version
                await anyio.sleep(_LOOK_SECONDS)
        return ""

    async def close(self) -> None:
        """Begin with no other, and wait until what is under way has come to its end."""
        self._closing = True
        async with self._lock:
            pass


def _is_settled(shim: Shim) -> bool:
    """Whether something lives in it, and nothing is being made."""
    tenants = shim.tenants.values()
    return bool(tenants) and all(each.lost is not None for each in tenants)


def _left(why: str) -> FailedPrecondition:
    return FailedPrecondition(why, verbatim=True)


def is_older(version: str, installed: str) -> bool:
    """What is no version is neither older nor newer."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) < Version(installed)
    except InvalidVersion:
        return False
