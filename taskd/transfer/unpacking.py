"""Snapshots of an image's layers, each as soon as it is there.

Source: containerd's ``core/unpack``.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

import anyio

from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TaskdError
from taskd.errors import Unknown as UnknownError
from taskd.images.descriptors import Descriptor
from taskd.images.platforms import Platform, normalized
from taskd.images.tree import Images
from taskd.metadata import Descriptor as Target
from taskd.together import together
from taskd.transfer.store import Unpack
from taskd.transfer.writing import Contents

__all__ = ["Apply", "Layers", "Snapshots", "Unpacker"]

_log = logging.getLogger(__name__)

USUAL = "overlayfs"

_REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"
_DIFF_ID = "containerd.io/snapshot/diff-id"
_PARENT = "containerd.io/snapshot/parent-chain-id"
_UNCOMPRESSED = "containerd.io/uncompressed"
_TRIES = 3

Apply = Callable[[str, Target, Sequence[Any]], Awaitable[Target]]
"""Unpacks a layer of a namespace's content onto mounts; answers what it was uncompressed."""

Fetch = Callable[[Descriptor], Coroutine[Any, Any, None]]
"""Has a layer's content, which may be there."""


class Snapshots(Protocol):
    """A snapshotter, as far as it is used here."""

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> Sequence[Any]: ...

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> None: ...

    async def remove(self, namespace: str, key: str, lease: str | None = None) -> None: ...

    def stat(self, namespace: str, name: str) -> object: ...


class Layers:
    """What makes layers into snapshots, for all transfers: each only once at a time."""

    def __init__(self, snapshotters: Mapping[str, Snapshots], apply: Apply) -> None:
        self.snapshotters = snapshotters
        self.apply = apply
        self._locks: dict[tuple[str, str, str], tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def alone(self, namespace: str, snapshotter: str, name: str) -> AsyncIterator[None]:
        """While the context is open nobody else makes that snapshot."""
        key = namespace, snapshotter, name
        lock, users = self._locks.get(key, (anyio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


class Unpacker:
    """Unpacks the images of one transfer."""

    def __init__(
        self, layers: Layers, contents: Contents, images: Images, unpacks: Sequence[Unpack]
    ) -> None:
        """Raises `InvalidArgument` if there is no snapshotter for any of `unpacks`."""
        self._layers = layers
        self._contents = contents
        self._images = images
        self._systems: dict[str, str] = {}
        """The snapshotter for each operating system."""
        for unpack in unpacks:
            name = unpack.snapshotter or USUAL
            system = normalized(unpack.platform).os
            if name in layers.snapshotters and system == "linux":
                self._systems.setdefault(system, name)
            else:
                _log.warning("nothing is unpacked for %s with snapshotter %s", system, name)
        if not self._systems:
            words = "unable to initialize unpacker: no unpack platforms defined"
            raise InvalidArgument(words)

    async def unpack(self, config: Descriptor, layers: Sequence[Descriptor], fetch: Fetch) -> None:
        """Have the layers' content, and the snapshots if they are for this machine.

        Raises `InvalidArgument`, `FailedPrecondition` for a layer that is not what it should be,
        and what `fetch`, the snapshotter and the differ raise.
        """
        platform, diff_ids, kind = await self._images.layers_of(config)
        if len(diff_ids) != len(layers):
            words = "number of layers and diffIDs don't match"
            raise InvalidArgument(f"{words}: {len(layers)} != {len(diff_ids)}")
        snapshotter = self._snapshotter(platform, kind)
        if snapshotter is None:
            await _fetch_all(layers, fetch)
            return
        chain = _chain(diff_ids)
        making = _Making(self._layers, self._contents, self._images, snapshotter)
        async with together() as group:
            ready: list[anyio.Event] = []

            async def content(number: int) -> None:
                # Those below the first one that is asked for are unpacked, and need not be fetched.
                if not ready:
                    ready.extend(anyio.Event() for _ in layers)
                    for later in range(number, len(layers)):
                        group.start_soon(_fetch_one, layers[later], fetch, ready[later])
                await ready[number].wait()

            for number, layer in enumerate(layers):
                await making.make(
                    layer,
                    diff_ids[number],
                    chain[number],
                    chain[number - 1] if number else "",
                    partial(content, number),
                )
        if chain:
            label = f"containerd.io/gc.ref.snapshot.{snapshotter}"
            await self._images.set_labels(config.digest, {label: chain[-1]})

    def _snapshotter(self, platform: Platform, kind: str) -> str | None:
        if kind not in ("", "layers"):
            return None
        return self._systems.get(normalized(platform).os)


class _Making:
    """Snapshots of one image."""

    def __init__(
        self, layers: Layers, contents: Contents, images: Images, snapshotter: str
    ) -> None:
        self._layers = layers
        self._contents = contents
        self._images = images
        self._name = snapshotter
        self._snapshots = layers.snapshotters[snapshotter]

    async def make(
        self,
        layer: Descriptor,
        diff_id: str,
        name: str,
        parent: str,
        content: Callable[[], Awaitable[None]],
    ) -> None:
        """Make the snapshot `name`, unless there is one, once `content` has the layer's."""
        namespace, lease = self._contents.namespace, self._contents.lease
        labels = {
            key: value for key, value in layer.annotations.items() if key.startswith(_INHERITED)
        }
        labels |= {_REF: name, _DIFF_ID: diff_id}
        if parent:
            labels[_PARENT] = parent
        async with self._layers.alone(namespace, self._name, name):
            prepared = await self._prepare(name, parent, labels)
            if prepared is None:
                return
            key, mounts = prepared
            try:
                await content()
                await self._fill(layer, diff_id, key, mounts)
                try:
                    await self._snapshots.commit(namespace, name, key, "", labels, lease)
                except AlreadyExists:
                    await self._snapshots.remove(namespace, key, lease)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._discard(key)
                raise
        await self._images.set_labels(layer.digest, {_UNCOMPRESSED: diff_id})

    async def _prepare(
        self, name: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[str, Sequence[Any]] | None:
        """Key and mounts of a new snapshot, or None if there is one of that name.

        The lease holds either.
        """
        namespace, lease = self._contents.namespace, self._contents.lease
        for _ in range(_TRIES):
            key = f"extract-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)} {name}"
            try:
                return key, await self._snapshots.prepare(namespace, key, parent, labels, lease)
            except AlreadyExists:
                with suppress(NotFound):
                    self._snapshots.stat(namespace, name)
                    return None
            except TaskdError as exc:
                words = f'failed to prepare extraction snapshot "{key}"'
                raise exc.within(words) from exc
        raise UnknownError(f"unable to prepare extraction snapshot for {name}")

    async def _fill(self, layer: Descriptor, diff_id: str, key: str, mounts: Sequence[Any]) -> None:
        try:
            found = await self._layers.apply(self._contents.namespace, layer, mounts)
        except TaskdError as exc:
            raise exc.within(
                f"failed to extract layer ({layer.media_type} {layer.digest}) to {self._name} as "
                f'"{key}"'
            ) from exc
        if found.digest != diff_id:
            words = f'wrong diff id "{found.digest}" calculated on extraction "{diff_id}"'
            raise FailedPrecondition(f"{words}, desc {layer.digest}", verbatim=True)

    async def _discard(self, key: str) -> None:
        try:
            await self._snapshots.remove(self._contents.namespace, key, self._contents.lease)
        except TaskdError as exc:
            _log.error('failed to cleanup "%s": %s', key, exc)


def _chain(diff_ids: Sequence[str]) -> list[str]:
    """The names of snapshots, each of which says what is below it (OCI's ``ChainID``)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            pair = f"{chain[-1]} {diff_id}".encode()
            chain.append(f"sha256:{hashlib.sha256(pair).hexdigest()}")
        else:
            chain.append(diff_id)
    return chain


async def _fetch_one(layer: Descriptor, fetch: Fetch, ready: anyio.Event) -> None:
    await fetch(layer)
    ready.set()


async def _fetch_all(layers: Sequence[Descriptor], fetch: Fetch) -> None:
    async with together() as group:
        for layer in layers:
            group.start_soon(fetch, layer)
