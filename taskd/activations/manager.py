"""Activations as namespaces see them. Source: containerd's ``core/mount/manager/manager.go``."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio.to_thread import run_sync

from taskd.activations import making, records
from taskd.activations.records import Record
from taskd.activations.transforms import TRANSFORMS, split
from taskd.activations.types import Activation, Active
from taskd.errors import AlreadyExists, NotFound, TaskdError, Unimplemented, Unknown
from taskd.metadata import Database
from taskd.metadata import labels as labels_
from taskd.printable import quoted
from taskd.runtime.locks import KeyedLock
from taskd.types import Mount

__all__ = ["MountManager", "asks_for_more"]

_log = logging.getLogger(__name__)


class _Plan(NamedTuple):
    mounts: Sequence[Mount]
    made: int
    """How many of them are to be mounted; the rest is left to others."""
    filled: bool
    """The first of the rest is to be transformed as well."""


class MountManager:
    def __init__(self, database: Database, folder: Path, roots: Sequence[Path]) -> None:
        """Mounts are made below `folder`; ``mkdir`` may make folders there and below `roots`.

        `folder` is lost when the machine starts anew, as the mounts are.
        """
        self._database = database
        self._folder = folder / "t"
        self._roots = (self._folder, *roots)
        self._locks: KeyedLock[str] = KeyedLock()
        self._making: set[tuple[str, str]] = set()
        self._littered = True
        """There may be folders that belong to no activation."""

    async def load(self) -> None:
        """Forget what an earlier daemon has not made to the end, and what the machine has lost."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        gone = [
            each.number
            for each in self._all("")
            if not each.whole or not (self._folder / str(each.number)).is_dir()
        ]
        if gone:
            await self._database.maintain(lambda connection: records.remove(connection, gone))

    async def activate(
        self,
        namespace: str,
        name: str,
        mounts: Sequence[Mount],
        labels: Mapping[str, str] | None = None,
        *,
        temporary: bool = False,
        allowed: Set[str] = frozenset(),
        lease: str | None = None,
    ) -> Activation:
        """Make those of `mounts` that take more than mount(2), and all that come before them.

        All of them if it is `temporary`. `allowed` are types that whoever is to mount them can do
        itself, ``format/*`` for all of that transform. Raises `Unimplemented` if there is nothing
        to be done, `AlreadyExists`, and what the transforms and `making.make` raise; then nothing
        is mounted.
        """
        plan = _planned(mounts, temporary, allowed)
        if not name:
            raise Unknown("bucket name required")
        stored = labels_.dump(labels or {})

        def begin(connection: sqlite3.Connection) -> int:
            found = records.find(connection.execute, namespace, name)
            if found is not None:
                if found.whole:
                    raise AlreadyExists(f"mount {quoted(name)}")
                records.remove(connection, [found.number])
            return records.insert(connection, namespace, name, stored, lease)

        async with self._locks.hold(name):
            self._making.add((namespace, name))
            try:
                number = await self._database.write(begin)
                try:
                    active, system = await run_sync(self._make, number, plan)
                    if temporary and active:
                        options = ("rbind",)
                        system = (*system, Mount("bind", active[-1].point, options=options))
                    await self._database.write(
                        lambda connection: records.finish(connection, number, active, system)
                    )
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._take_back(number)
                    raise
            finally:
                self._making.discard((namespace, name))
        return Activation(name, tuple(active), tuple(system), labels_.load(stored))

    async def deactivate(self, namespace: str, name: str) -> None:
        """Unmount what was mounted. Raises `NotFound`, `Unknown` if something is in use.

        Then it is tried again with the next `sweep`.
        """

        def remove(connection: sqlite3.Connection) -> int:
            found = records.find(connection.execute, namespace, name)
            if found is None:
                raise NotFound(f"missing mount {quoted(name)} bucket")
            records.remove(connection, [found.number])
            return found.number

        async with self._locks.hold(name):
            number = await self._database.write(remove)
            self._littered = True
            with anyio.CancelScope(shield=True):
                await run_sync(making.clear, self._folder / str(number))

    def info(self, namespace: str, name: str) -> Activation:
        """Raises `NotFound`."""
        found = records.find(self._database.read, namespace, name)
        if found is None:
            raise NotFound(f"mount {quoted(name)} not found", verbatim=True)
        return found.activation

    def list(self, namespace: str) -> Sequence[Activation]:
        """All of them, by name."""
        return [each.activation for each in self._all(namespace)]

    @property
    def making(self) -> Set[tuple[str, str]]:
        """Namespace and name of those that are being made, which are no garbage."""
        return frozenset(self._making)

    def collected(self) -> None:
        """Records have been removed; their folders go with a sweep."""
        self._littered = True

    async def sweep(self) -> None:
        """Unmount and remove what belongs to no activation (any more)."""
        if not self._littered:
            return
        self._littered = False
        folders = await run_sync(lambda: list(self._folder.iterdir()))
        # In this order: a record comes before its folder.
        known = {str(each.number) for each in self._all("")}
        for folder in folders:
            if folder.name not in known:
                try:
                    await run_sync(making.clear, folder)
                except TaskdError as error:
                    self._littered = True
                    _log.warning("a mount that nobody needs stays: %s", error)

    def _make(self, number: int, plan: _Plan) -> tuple[Sequence[Active], Sequence[Mount]]:
        folder = self._folder / str(number)
        folder.mkdir(mode=0o700)
        active: list[Active] = []
        for place, mount in enumerate(plan.mounts[: plan.made]):
            changed = self._transformed(mount, active)
            # The names of those that are to be unmounted first come first.
            active.append(making.make(changed, folder, str(plan.made - place)))
        system = list(plan.mounts[plan.made :])
        if plan.filled:
            system[0] = self._transformed(system[0], active)
        return active, system

    def _transformed(self, mount: Mount, active: Sequence[Active]) -> Mount:
        names, kind = split(mount.type)
        mount = replace(mount, type=kind)
        for name in names:
            mount = TRANSFORMS[name](mount, active, self._roots)
        return mount

    async def _take_back(self, number: int) -> None:
        self._littered = True
        await self._database.maintain(lambda connection: records.remove(connection, [number]))
        try:
            await run_sync(making.clear, self._folder / str(number))
        except TaskdError as error:
            _log.error("what was mounted for an activation that failed stays: %s", error)

    def _all(self, namespace: str) -> Sequence[Record]:
        """Of a namespace, or of all of them."""
        return records.all_of(self._database.read, namespace)


def asks_for_more(mounts: Sequence[Mount]) -> bool:
    """Whether any of `mounts` takes more than mount(2)."""
    return any(kind in making.HANDLERS or names for names, kind in _kinds(mounts))


def _kinds(mounts: Sequence[Mount]) -> Sequence[tuple[Sequence[str], str]]:
    return [split(each.type) for each in mounts]


def _planned(mounts: Sequence[Mount], temporary: bool, allowed: Set[str]) -> _Plan:
    """Raises `Unimplemented` if there is nothing to be done."""
    made, filled = -1, False
    for place, (names, kind) in enumerate(_kinds(mounts)):
        whole = mounts[place].type
        if any(f"{name}/*" not in allowed and whole not in allowed for name in names):
            made, filled = place, True
        if temporary or (kind in making.HANDLERS and kind not in allowed):
            made, filled = place + 1, False
    if made < 0:
        raise Unimplemented
    return _Plan(mounts, made, filled)
