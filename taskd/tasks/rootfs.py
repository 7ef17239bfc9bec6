"""Root filesystems that take more than their shim can do: what the mount manager does for a task.

Source: containerd's ``core/runtime/v2/task_manager.go`` (2.2 and later).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager

import anyio

from taskd.activations import MountManager, asks_for_more
from taskd.errors import AlreadyExists, NotFound, TaskdError, Unimplemented
from taskd.runtime import info
from taskd.runtime.binary import resolve
from taskd.types import Mount

__all__ = ["Rootfs"]

_log = logging.getLogger(__name__)

_OWNER = "containerd.io/gc.bref.container"
"""Label of an activation that names the container it is kept for."""

_ALLOWED = "containerd.io/runtime-allow-mounts"
"""Annotation with which a shim tells what it can mount itself."""


class Rootfs:
    def __init__(self, manager: MountManager) -> None:
        self._manager = manager
        self._allowed: dict[str, Set[str]] = {"io.containerd.runc.v2": frozenset()}

    @asynccontextmanager
    async def mounted(
        self, namespace: str, container: str, runtime: str, mounts: tuple[Mount, ...]
    ) -> AsyncIterator[tuple[Mount, ...]]:
        """What is left of `mounts` for the shim; if the block fails, nothing stays mounted.

        Raises what `MountManager.activate` does.
        """
        if not asks_for_more(mounts):
            yield mounts
            return
        try:
            activation = await self._manager.activate(
                namespace,
                container,
                mounts,
                {_OWNER: container},
                allowed=await self._can(runtime),
            )
        except Unimplemented as error:
            if error.message != Unimplemented().message:
                raise
            yield mounts
            return
        except AlreadyExists:
            # Of a task before, and with the same container.
            yield self._manager.info(namespace, container).system
            return
        try:
            yield activation.system
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.unmount(namespace, container)
            raise

    async def unmount(self, namespace: str, container: str) -> None:
        """Unmount what was mounted for a task, if anything was."""
        try:
            self._manager.info(namespace, container)
            await self._manager.deactivate(namespace, container)
        except NotFound:
            pass
        except TaskdError as error:
            _log.error("mounts of %s/%s: %s", namespace, container, error)

    async def _can(self, runtime: str) -> Set[str]:
        """The types that the runtime's shim mounts itself."""
        if runtime not in self._allowed:
            try:
                told = await info.of_runtime(resolve, runtime, None)
            except TaskdError as error:
                _log.error("what %s can mount is not known: %s", runtime, error)
                return frozenset()
            types = told.annotations.get(_ALLOWED, "")
            self._allowed[runtime] = frozenset(types.split(",")) - {""}
        return self._allowed[runtime]
