"""The descriptor store: what shims have open, kept for those that go on where they die.

A shim connects, and says what is to be in the slots of each of its containers' processes; what
travels stands in `taskd.slots`. It does so anew to a daemon that was restarted. What is sent is
kept by the kernel from then on, so that a shim may die before it has been read; nobody is given
what was kept before all that has been sent is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from taskd.runtime.types import Key
from taskd.slots import Slots, receive, send
from taskd.sockets import refuse_stranger

__all__ = ["DescriptorStore", "Keeping"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Keeping:
    """A shim's process that has its descriptors kept."""

    connection: socket.socket
    namespace: str = ""
    pid: int = 0
    version: str = ""
    """What it runs."""
    gone: anyio.Event = field(default_factory=anyio.Event)
    """All that it has sent has been read, and it has hung up."""
    dismissal: asyncio.Future[str] | None = None
    """Of one that was asked to leave: why it stays, or empty when it has left."""


class DescriptorStore:
    """Slots by container and process. `group` owns what is received.

    No more than half of the descriptors that this process may have are kept: without any, nobody
    could connect to it. What has not been kept cannot be gone on with.
    """

    def __init__(self, group: TaskGroup, limit: int | None = None) -> None:
        self._group = group
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 if limit is None else limit
        self._count = 0
        # Those of which nothing is kept: a part would pass for the whole.
        self._refused: dict[Key, set[str]] = {}
        self._kept: dict[Key, dict[str, Slots]] = {}
        self._owners: dict[Key, Keeping] = {}
        self._shims: set[Keeping] = set()

    @property
    def shims(self) -> list[Keeping]:
        """The processes that are connected."""
        return list(self._shims)

    def has(self, key: Key) -> bool:
        """Whether anything is kept of a container."""
        return key in self._kept

    def of(self, pid: int) -> Keeping | None:
        """The process of that pid, if it has its descriptors kept."""
        return next((shim for shim in self._shims if shim.pid == pid), None)

    async def dismiss(self, shim: Keeping) -> str:
        """Ask a process to leave what it has to another; why it stays, or empty when it has left.

        Raises OSError if it has gone before.
        """
        shim.dismissal = asyncio.get_running_loop().create_future()
        await _send(shim.connection, {"leave": True})
        return await shim.dismissal

    async def left(self, key: Key) -> None:
        """Wait until all has been read that a process has sent of a container, which is dead."""
        if (owner := self._owners.get(key)) is not None:
            await owner.gone.wait()

    def forget(self, key: Key) -> None:
        """Keep nothing of a container any more."""
        self._owners.pop(key, None)
        self._refused.pop(key, None)
        for slots in self._kept.pop(key, {}).values():
            self._empty(slots, list(slots))

    def close(self) -> None:
        for key in list(self._kept):
            self.forget(key)

    async def serve(self, listener: socket.socket) -> None:
        """Take what shims send, for ever."""
        listener.setblocking(False)
        while True:
            await anyio.wait_readable(listener)
            with suppress(BlockingIOError):
                try:
                    connection, _ = listener.accept()
                    connection.setblocking(False)
                except OSError as exc:
                    # There are too many open files, as a rule.
                    log.error("descriptor store: %s", exc)
                    await anyio.sleep(0.1)
                    continue
                self._group.start_soon(self._serve, Keeping(connection))

    async def _serve(self, shim: Keeping) -> None:
        self._shims.add(shim)
        try:
            refuse_stranger(shim.connection)
            while True:
                try:
                    message, descriptors = receive(shim.connection)
                except BlockingIOError:
                    await anyio.wait_readable(shim.connection)
                    continue
                if not message:
                    break
                try:
                    await self._take(shim, message, descriptors)
                finally:
                    _close(descriptors)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            log.warning("descriptor store: shim process %d: %s", shim.pid, exc)
        finally:
            self._shims.discard(shim)
            shim.connection.close()
            shim.gone.set()
            _answer(shim, "")

    async def _take(
        self, shim: Keeping, message: dict[str, object], descriptors: list[int]
    ) -> None:
        """Do what a message says. What is left in `descriptors` is nobody's."""
        match message:
            case {"pid": int(pid), "namespace": str(namespace), "version": str(version)}:
                shim.pid, shim.namespace, shim.version = pid, namespace, version
            case {"stays": str(reason)}:
                _answer(shim, reason or "it does not say why")
            case {"recover": list(containers)}:
                for container in containers:
                    await self._give(shim, str(container))
                await _send(shim.connection, {"done": True})
            case {
                "container": str(container),
                "process": str(process),
                "put": list(put),
                "drop": list(drop),
                "anew": bool(anew),
            }:
                if len(put) != len(descriptors):
                    raise ValueError(f"{len(put)} slots, {len(descriptors)} descriptors")
                key = Key(shim.namespace, container)
                self._owners[key] = shim
                slots = self._kept.setdefault(key, {}).setdefault(process, {})
                if anew:
                    self._refused.get(key, set()).discard(process)
                self._empty(slots, list(slots) if anew else [*drop, *put])
                if self._takes(key, process, slots, len(put)):
                    self._count += len(put)
                    while put:
                        slots[str(put.pop())] = descriptors.pop()
                if not slots:
                    del self._kept[key][process]
                if not self._kept[key]:
                    del self._kept[key]
            case _:
                raise ValueError(f"a message with {', '.join(map(str, message))}")

    def _empty(self, slots: Slots, names: Iterable[object]) -> None:
        for name in names:
            if (descriptor := slots.pop(str(name), -1)) >= 0:
                os.close(descriptor)
                self._count -= 1

    def _takes(self, key: Key, process: str, slots: Slots, more: int) -> bool:
        """Whether there is room for so many of a process, of which all has been kept so far."""
        refused = self._refused.get(key, set())
        if self._count + more > self._limit and process not in refused:
            log.warning("descriptor store: full; %s may end with its shim", key)
            self._empty(slots, list(slots))
            self._refused[key] = refused | {process}
        return process not in self._refused.get(key, set())

    async def _give(self, shim: Keeping, container: str) -> None:
        """Send what is kept of a container; it is kept all the same."""
        for process, slots in list(self._kept.get(Key(shim.namespace, container), {}).items()):
            message = {"container": container, "process": process, "put": list(slots)}
            await _send(shim.connection, message, list(slots.values()))


def _answer(shim: Keeping, reason: str) -> None:
    if shim.dismissal is not None and not shim.dismissal.done():
        shim.dismissal.set_result(reason)


async def _send(
    connection: socket.socket, message: Mapping[str, object], descriptors: Iterable[int] = ()
) -> None:
    while True:
        try:
            send(connection, message, list(descriptors))
        except BlockingIOError:
            await anyio.wait_writable(connection)
        else:
            return


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
